"""``AutoModel*.from_pretrained`` for winnow folders, whichever of winnow and transformers is imported first.

Nothing of transformers (or torch) is imported here. Where the quantizer registry of transformers is loaded already,
winnow registers at once; otherwise a finder on ``sys.meta_path`` waits for that one module and registers when it has
been executed.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
import types
import warnings
from collections.abc import Callable, Sequence

_REGISTRY = "transformers.quantizers.auto"


def install_hook() -> None:
    """Make transformers load winnow folders, now or when it is imported. Calling it again changes nothing."""
    if _REGISTRY in sys.modules:
        _register()
    elif not any(isinstance(finder, _RegistryFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _RegistryFinder())


class _RegistryFinder(importlib.abc.MetaPathFinder):
    """Finds the registry as the other finders do, and registers winnow once it has been executed."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != _REGISTRY:
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(fullname, path, target)
            if spec is not None and spec.loader is not None:
                spec.loader.exec_module = _then_register(spec.loader.exec_module)  # type: ignore
                return spec
        return None


def _then_register(execute: Callable[[types.ModuleType], None]) -> Callable[[types.ModuleType], None]:
    def exec_module(module: types.ModuleType) -> None:
        execute(module)
        _register()

    return exec_module


def _register() -> None:
    try:
        from winnow.formats.hf_quantizer import register
    except ImportError as error:
        warnings.warn(
            f"winnow cannot teach this transformers to load its folders ({error}): pip install 'winnow-nn[hf]'",
            stacklevel=2,
        )
    else:
        register()
