"""A sweep as its folder describes it: its files, its trials by rank, and the answer.

Imports `sharing`, `space` and `config` of `tuning`, and the rooms below.
Enter at `record` (everything about a sweep) and `verdict` (its answer).
"""
