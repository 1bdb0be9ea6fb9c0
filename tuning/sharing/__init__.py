"""Computes work that several trials share once: frozen prefixes, copied trials.

Imports `space`, `search`, `leaderboard` and `config` of `tuning`.
Enter at `plan` (what is worth sharing) and `prefixes` (builds it).
"""
