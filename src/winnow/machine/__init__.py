"""This machine: its processor, memory, caches, bandwidth and power meters."""
