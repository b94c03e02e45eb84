"""bench.html, and the speed chapter of a report."""
