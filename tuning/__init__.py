"""Many trainings -> one answer. Knows Ray Tune."""
