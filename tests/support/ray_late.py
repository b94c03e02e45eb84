"""A module that a job imports by itself, and the caller has not."""

from dataclasses import dataclass


@dataclass
class Late:
    number: int
