"""Protection of a training run from non-finite values, hangs and damaged images."""
