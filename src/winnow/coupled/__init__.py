"""Coupled units: weights that go together, found by running the model."""
