"""A data loader whose position and random state can be saved and restored."""
