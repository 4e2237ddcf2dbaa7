"""Which images there are: data sets, folders, shards, classes, decoding, damaged files."""
