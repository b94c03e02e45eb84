"""Runs any model on a batch: how it is called, what its answer holds, and nothing left behind."""
