"""What a training run writes: its folder, log, summary and trackers."""
