"""``AutoModel*.from_pretrained`` for winnow folders, whichever of winnow and transformers is imported first.

Nothing of transformers (or torch) is imported here. Where the quantizer registry of transformers is loaded already,
winnow registers at once; otherwise a finder on ``sys.meta_path`` waits for that one module and registers when it has
been executed. The Trainer's notice about zeros (``winnow.train.notice``) comes to it in the same way.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
import types
import warnings
from collections.abc import Callable, Sequence

_REGISTRY = "transformers.quantizers.auto"


def install_hook() -> None:
    """Make transformers load winnow folders, now or when it is imported. Calling it again changes nothing."""
    when_imported(_REGISTRY, _register)


def when_imported(module: str, action: Callable[[], None]) -> None:
    """Does something once a module has been executed, now if it has been. A second action for a module is left out."""
    if module in sys.modules:
        action()
    elif not any(isinstance(finder, _Finder) and finder.module == module for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder(module, action))


class _Finder(importlib.abc.MetaPathFinder):
    """Finds one module as the other finders do, and acts once it has been executed."""

    def __init__(self, module: str, action: Callable[[], None]) -> None:
        self.module, self.action = module, action

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self.module:
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(fullname, path, target)
            if spec is not None and spec.loader is not None:
                spec.loader.exec_module = _then(self.action, spec.loader.exec_module)  # type: ignore
                return spec
        return None


def _then(
    action: Callable[[], None], execute: Callable[[types.ModuleType], None]
) -> Callable[[types.ModuleType], None]:
    def exec_module(module: types.ModuleType) -> None:
        execute(module)
        action()

    return exec_module


def _register() -> None:
    try:  # it registers itself when it is imported; where that import is what brought transformers in, it is on its way
        importlib.import_module("winnow.formats.hf_quantizer")
    except ImportError as error:
        warnings.warn(
            f"winnow cannot teach this transformers to load its folders ({error}): pip install 'winnow-nn[hf]'",
            stacklevel=2,
        )
