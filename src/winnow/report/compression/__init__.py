"""report.html: what a compression did, and what it cost."""
