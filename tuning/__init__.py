"""Sweeps: many trainings that answer how much of a network to thaw.

Imports `trainers`, `datasets` and `cluster`; the only room that knows Ray Tune.
Enter at `run` (a sweep) and `record` (what its folder says, and its answer).
"""
