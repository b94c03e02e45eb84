"""Benchmarks of winnow. Run one as ``python -m benchmarks.AREA.SCRIPT`` in the repository root; README.md lists them."""
