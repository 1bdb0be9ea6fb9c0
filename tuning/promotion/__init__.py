"""A sweep's winner as the model to use: trained longer, tested, exported, or cross-validated.

Imports `review`, `budget`, `record` and `winner` of `tuning`, and the rooms below.
Enter at `promote`.
"""
