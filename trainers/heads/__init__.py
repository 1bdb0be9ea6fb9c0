"""Linear heads on the features of one frozen network, trained together.

Imports what `trainers.loop` imports, not the loop; used by sweeps, which share the features.
Enter at `training.train_together`; `stack` has the tensors.
"""
