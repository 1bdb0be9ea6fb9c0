"""A sweep while it runs: its lines and table on the terminal, trials.json, the trials' W&B runs.

Imports `search`, `record`, `trial`, `sharing` and `wandb` of `tuning`, and the rooms below.
Enter at `progress`.
"""
