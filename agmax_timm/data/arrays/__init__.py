"""The fast augmentation backend: timm's transforms on NumPy arrays, by OpenCV."""
