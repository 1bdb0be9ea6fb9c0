"""Evaluates a trained network: predictions for a split, measures, pictures and Grad-CAM.

Imports `run`, `networks`, `inference`, `tracking` and the root of `trainers`.
Enter at `evaluate`; `split` predicts, `measures` computes, `explain` draws Grad-CAM.
"""
