"""Methods of sparse training, one class a file. A new one is its file and a line here; tests/train/test_contract.py finds it."""

from __future__ import annotations

from importlib import import_module

from winnow.train.method import SparseMethod

_CLASSES = {
    "fixed": "Fixed",
    "gradual": "Gradual",
}
METHODS: dict[str, type[SparseMethod]] = {
    module: getattr(import_module(f"{__name__}.{module}"), name) for module, name in _CLASSES.items()
}
