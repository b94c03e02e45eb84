"""``bench``: the model on this machine, dense against packed, whole and layer by layer."""
