"""A table of many runs from one file: augmentations x methods x seeds. python -m agmax_timm.study --help"""
