"""`python -m datasets prepare`: source images -> checked, resized, sharded Parquet.

Imports `images`, `shards`, `config` and `synthetic`; no epochs, no augmentation.
Enter at `prepare`; `sources` lists the kinds of input, `staging` has the Ray tasks.
"""
