"""Augmentation that timm lacks: MixUp and CutMix of each view, and the transforms of the published AgMax runs."""
