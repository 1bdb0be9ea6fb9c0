"""One pass of all images through a network: features for the cache, or predictions as Parquet.

Imports the root of `datasets` and `prepare`; the network comes as a callable.
Enter at `inference` (any images) and `feature_builder` (features of a data set); `actors` sends
blocks of images to the processes that have the network.
"""
