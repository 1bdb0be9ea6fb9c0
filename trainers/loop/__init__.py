"""The training loop: what a rank does from its start to its last epoch.

Imports `step`, `run`, `evaluation.measures` and the root of `trainers`, but not `launch`.
Enter at `loop.train`; `training` has an epoch, `validation` the predictions after it.
"""
