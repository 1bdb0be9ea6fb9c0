"""A sweep in W&B: its run with the review page, two workspaces, and a report with the answer.

Imports `review` and the root of `tuning`; with `trainers.tracking`, the only user of wandb.
Enter at `sweep` (the run) and `views` (workspaces and report).
"""
