"""Stanford Cars: `--source stanford`.

Imports `config` and `listing` of `prepare`. Enter at `stanford.list_stanford`; `mat_files` reads
and checks the annotations.
"""
