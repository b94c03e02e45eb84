"""Which weights can be pruned, in what shape, and the masks that say which stay."""
