"""Export of a packed model to files that load without winnow."""
