"""A sweep in W&B: its run, and the saved workspaces.

Imports `sharing` and the root of `tuning`; with trainers/tracking, the only use of wandb.
Enter at `sweep` (the run) and `views` (workspaces).
"""
