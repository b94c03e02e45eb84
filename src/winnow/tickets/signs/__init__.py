"""Signs against magnitudes: what a learned mask is worth with either, and with neither."""
