"""Any images through a network to Parquet, by Ray Data.

Imports `run`, `networks` and the root of `trainers`.
Enter at `predict` (classes) and `features` (tensors of a stage).
"""
