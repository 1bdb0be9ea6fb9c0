"""A fake W&B server, and checks of what wandb wrote."""
