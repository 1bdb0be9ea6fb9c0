"""A network in training, and one step of it: forward and backward pass, optimizer, average.

Imports `networks`, `config`, `metrics` and `worker` of `trainers`; no data, no files.
Enter at `step.train_step` and `state.TrainState`; `settings` makes the settings of a step.
"""
