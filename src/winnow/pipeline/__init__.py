"""Recipes of several stages: read, checked, shown, run, and put together into one result."""
