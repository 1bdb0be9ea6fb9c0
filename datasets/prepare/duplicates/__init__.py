"""Near duplicates: found by perceptual hashes, reported as a table and a picture.

Imports `images`; decides nothing about splits, which `datasets.prepare.partition` does.
Enter at `near.find_pairs` and `report.write_report`.
"""
