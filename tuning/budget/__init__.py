"""The budget of a sweep: how long its trials may take, and what real steps of them take.

Imports `config`, `search`, `space` and `sharing` of `tuning`, and the rooms below.
Enter at `config` (the options), `deadline` (stops trials), `estimate` (seconds of a sweep) and
`gpu_memory` (trials that share a GPU).
"""
