"""Command lines that several tests share."""

SMALL_VALIDATION = ['-j', '0', '-b', '5', '--device', 'cpu']
