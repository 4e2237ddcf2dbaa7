"""The options of train.py and validate.py: their declaration, parsing and checks."""
