"""Instant Soup Pruning."""
