"""Initial weights: drawn from a seed, published ones, or those of a file.

Imports the root of `networks` and `transformers`; no other part of `trainers` but its config.
Enter at `initialization.initialize`; `tensors` alone reads and writes files of tensors.
"""
