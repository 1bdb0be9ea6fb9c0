"""One pass of all images through a callable: features kept, or predictions to Parquet.

Imports the root of `datasets` and `prepare`; the network comes as a callable.
Enter at `inference` (any images) and `feature_builder` (features of a data set).
"""
