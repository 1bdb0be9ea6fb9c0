"""Batches -> model. Knows Ray Train."""
