"""Entry points of train.py and validate.py."""
