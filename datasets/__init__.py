"""Images -> Parquet shards -> uint8 batches, by Ray Data.

Imports `cluster`; no torch, no Ray Train, no W&B.
Enter at `prepare.prepare` to write a data set, at `epochs.stream` to read one.
"""
