"""Names that data options take, for the command line as well: it imports nothing else of this package."""

CROP_MODES = ('rrc', 'rkrc', 'rkrr', 'pad')
MIXUP_MODES = ('batch', 'pair', 'elem')
BACKENDS = ('auto', 'timm', 'fast')
