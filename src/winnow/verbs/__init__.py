"""Verbs without a room of their own: evaluate, inspect, demo."""
