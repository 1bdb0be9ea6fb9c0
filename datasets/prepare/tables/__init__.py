"""Images that a table names: CSV, JSON lines, Parquet, metadata.csv, Kaggle's and COCO's tables.

Imports its siblings in `prepare`.
Enter at `listing.list_table`; `table` reads, `rows` parses, `columns` and `matching` are pure,
`roots` lists files.
"""
