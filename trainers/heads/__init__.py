"""Linear heads on the features of one frozen network, trained together.

Imports what `trainers.loop` does, and its rows and metrics; used by sweeps, which share the
features.
Enter at `training.train_together`; `stack` has the tensors, `grouping` which trainings can.
"""
