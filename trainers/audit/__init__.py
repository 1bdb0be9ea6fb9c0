"""The checks of an audit that need a network: label errors, other things, splits that differ.

Imports `inference`, `networks` and the root of `trainers`; the other checks are in datasets.audit.
Enter at `audit.run_audit`.
"""
