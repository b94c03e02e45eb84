"""Training with masks: the loop that fits what stays to the dense model, and what it needs."""
