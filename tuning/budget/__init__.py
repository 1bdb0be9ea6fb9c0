"""The budget of a sweep: how long its trials may take, over all sessions.

Imports `config` and `leaderboard` of `tuning`, and the rooms below.
Enter at `config` (the options), `deadline` (stops trials) and `estimate` (how long they take).
"""
