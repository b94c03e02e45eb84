"""Scores that need gradients: SNIP, GraSP, SynFlow and their kin."""
