"""From files to two augmented views of every image."""
