"""Trains networks on batches with DDP under Ray Train.

Imports `datasets` and `cluster`; `tuning` imports it.
Enter at `commands` (command line), `prepare` and `launch` (from Python), then `loop`.
"""
