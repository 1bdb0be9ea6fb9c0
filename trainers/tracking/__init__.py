"""Logs runs to W&B; with tuning/wandb, the only folder that imports wandb.

Imports `run`, `evaluation` and the root of `trainers`.
Enter at `mirror` (training), `evaluation` (evaluations) and `sync` (uploads).
"""
