"""Storage, JSON records, field checks, terminal output: what every room uses.

Imports the standard library, pyarrow and rich; no other module of this repository.
Enter at `storage` (URIs), `records` (JSON files), `fields` and `errors` (user errors).
"""
