"""Reading and writing weights: checkpoints, exported folders, model card, Hugging Face Hub."""
