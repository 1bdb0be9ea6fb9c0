"""`python -m cluster check-k8s`: overlays are built and judged by small named rules.

Imports `cluster`, and the entry file of each room to parse entrypoints.
Enter at `command`: `overlays` builds, `parts` finds what rules look at, `judge` has all rules.
"""
