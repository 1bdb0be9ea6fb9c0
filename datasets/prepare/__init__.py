"""`python -m datasets prepare`: source images -> validated, resized Parquet shards.

Imports `images`, `shards`, `config` and `synthetic`; no epochs, no augmentation.
Enter at `prepare`; `sources` lists the kinds of input, `jobs` has the two Ray Data jobs.
"""
