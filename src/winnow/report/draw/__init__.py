"""Drawing: a canvas for figures, axes, labels, and Markdown."""
