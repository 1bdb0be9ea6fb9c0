"""What is wrong with a prepared data set: checks, a table, an offline page and an exclude list.

Imports `prepare`, `passes` and the root of `datasets`; checks that need a network are in trainers.
Enter at `audit.measure_images` and `audit.write_audit`.
"""
