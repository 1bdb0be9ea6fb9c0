"""`python -m cluster doctor`: checks a cluster on all nodes and says what to fix.

Imports the root of `cluster` and `cluster.io`; torch only inside functions on the nodes.
Enter at `doctor`: `probes` collects facts from the nodes, `checks` judges them.
"""
