"""Work shared by several trials is computed once: frozen prefixes, copied trials.

Imports `config`, `space` and `search` of `tuning`, and the rooms below.
Enter at `plan` (what is worth sharing), `prefixes` (builds it) and `reuse` (copies trials).
"""
