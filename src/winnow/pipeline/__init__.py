"""Recipes of several stages: read, checked, planned, run and published."""
