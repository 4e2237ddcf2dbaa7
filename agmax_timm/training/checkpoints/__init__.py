"""What a training run saves, and how it resumes."""
