"""`python -m tuning advise`: a linear probe at every frozen stage, before any sweep.

Imports `record`, `sharing` and the root of `tuning`.
Enter at `advise`; `quadrants` has the rules, `advice` the record.
"""
