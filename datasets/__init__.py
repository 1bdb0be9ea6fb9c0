"""Images -> shards -> uint8 batches. Knows Ray Data; no model, no Ray Train, no W&B."""
