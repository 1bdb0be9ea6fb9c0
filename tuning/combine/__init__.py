"""The best of what a sweep has trained: soups, ensembles, and interpolation with the start.

Imports `config` and `record` of `tuning`, and the rooms below.
Enter at `combine`.
"""
