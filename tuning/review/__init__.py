"""`python -m tuning review`: a sweep as one HTML page.

Imports `advice`, `wandb` and the root of `tuning`.
Enter at `review`; `data` reads the sweep, `page` renders it.
"""
