"""Images in Parquet files: `--source parquet`.

Imports its siblings in `prepare`; `tables` and `datasets.passes` import `rows` and `labels`.
Enter at `parquet.list_parquet`; `rows` refers to rows and reads them, `labels` is pure.
"""
