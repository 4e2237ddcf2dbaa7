"""Tools without options, timm or AgMax: errors, text, files, console, signals, processes."""
