"""The updates of an epoch: loop over batches, gradients, losses, and the check for values that are not finite."""
