"""Fits a whole masked model to its dense self, on unlabelled data."""
