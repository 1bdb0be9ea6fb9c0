"""`python -m tuning review`: a sweep as one HTML page.

Imports `wandb` and the root of `tuning`; `wandb` imports `page` and `importance`.
Enter at `review` (the command) and `page` (the page of a `SweepRecord`).
"""
