"""Evaluates a checkpoint on a split: scores, pictures and Grad-CAM.

Imports `run`, `networks`, `tracking` and the root of `trainers`.
Enter at `evaluate`; `scores` computes the measures, `explain` draws Grad-CAM.
"""
