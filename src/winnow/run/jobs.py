"""What independent jobs are, wherever they run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

R = TypeVar("R")
Function = Callable[[Any, Any], R]  # of (shared, item)
Done = Callable[[int, R], None] | None  # called with (index of the item, result)
