"""A time-boxed trial of a search, and whether the full one is worth it."""
