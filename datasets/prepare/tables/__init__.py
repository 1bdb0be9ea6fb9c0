"""Images that a table names: CSV, JSON lines, Parquet, metadata.csv, Kaggle's and COCO's tables.

Imports its siblings in `prepare`.
Enter at `table.list_table`; `rows` parses, `columns` and `matching` are pure, `roots` lists files.
"""
