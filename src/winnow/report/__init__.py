"""Draws records: one folder a page, for the browser and the terminal."""
