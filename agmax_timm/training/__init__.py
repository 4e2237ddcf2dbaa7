"""A training run: from its creation over epochs and updates to its last checkpoint."""
