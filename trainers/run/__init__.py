"""A run folder: configuration, rows of metrics, checkpoints, predictions.

Imports `networks` and the modules of the root below the training loop.
Enter at `folder` (paths and resuming) and `checkpoint` (whole or absent).
"""
