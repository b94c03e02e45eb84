"""What is shipped to a worker process with a job, so that it finds there what it would have found here.

Objects are pickled by the cloudpickle that comes with Ray: closures, lambdas and what was defined in ``__main__`` are shipped by
value. Modules of the user's own, which nobody has installed on the workers, are shipped as their source and are imported there
under their own names, so that classes are the same whether they were unpickled or imported.

Imported only where Ray is used.
"""

from __future__ import annotations

import io
import os
import sys
import sysconfig
from functools import reduce
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import spec_from_loader
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import numpy as np
import torch
from ray import cloudpickle

from winnow.errors import InputError, WinnowError
from winnow.version import __version__

Sources = dict[str, tuple[str, str, bool]]  # module name -> (source, file name, whether it is a package)


def environment(threads: int) -> dict[str, Any]:
    """What every job needs whatever it does, in plain types: working folder, own modules, and how numbers are computed."""
    return {
        "folder": os.getcwd(),
        "paths": [p for p in sys.path if p and not _installed(p)],
        "sources": user_modules(),
        "versions": versions(),
        "threads": threads,
        "dtype": str(torch.get_default_dtype()).removeprefix("torch."),
        "matmul": torch.get_float32_matmul_precision(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


def versions() -> dict[str, str]:
    """What must agree for results to agree."""
    return {"winnow": __version__, "torch": torch.__version__}


def instructions() -> str:
    """The instruction set that torch computes with: another one may round differently."""
    return torch.backends.cpu.get_cpu_capability()


def pack(value: Any) -> np.ndarray:
    """A value as bytes, uint8 [n]: the form in which the object store keeps one copy per machine.

    Raises:
        InputError: something in it cannot leave this process (an open file, a lock, a generator).
    """
    return _pickled(
        cloudpickle.Pickler, value, "this job cannot be sent to another process",
        "leave out of it what belongs to this process alone, such as open files, locks and generators, or use executor local",
    )  # fmt: skip


def unpack(data: np.ndarray) -> Any:
    return cloudpickle.loads(data.data)


def run_job(sent: dict[str, Any], work: np.ndarray, item: np.ndarray) -> tuple[np.ndarray, str]:
    """One job in a worker: (packed result, instruction set)."""
    apply_environment(sent)
    function, shared = unpack(work)
    result = function(shared, unpack(item))
    return _pickled(
        _ResultPickler, result, "the result of a job cannot be sent back", "return plain values and tensors"
    ), instructions()


def apply_environment(sent: dict[str, Any]) -> None:
    """Makes this process like the one that sent its :func:`environment`."""
    if versions() != sent["versions"]:
        here, there = (", ".join(f"{n} {v}" for n, v in found.items()) for found in (versions(), sent["versions"]))
        raise WinnowError(f"a worker has {here} and the caller {there}: install the same versions on every machine.")
    if os.path.isdir(sent["folder"]):  # on a machine of its own there may be no such folder
        os.chdir(sent["folder"])
    sys.path.extend(p for p in sent["paths"] if p not in sys.path)
    ShippedModules.install(sent["sources"])
    torch.set_num_threads(sent["threads"])
    torch.set_default_dtype(getattr(torch, sent["dtype"]))
    torch.set_float32_matmul_precision(sent["matmul"])
    torch.use_deterministic_algorithms(sent["deterministic"])


def user_modules() -> Sources:
    """The source of every loaded module that is part of no installed package: what only this machine has."""
    found: Sources = {}
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] in ("__main__", "__mp_main__", "winnow", "winnow_nn") or not isinstance(
            module, ModuleType
        ):
            continue
        file = getattr(module, "__file__", None)
        if not file or not file.endswith(".py") or _installed(file) or _has_distribution(name.split(".")[0]):
            continue
        try:
            source = Path(file).read_text()
        except (OSError, UnicodeDecodeError):
            continue
        found[name] = (source, file, hasattr(module, "__path__"))
    return dict(sorted(found.items()))


class ShippedModules(MetaPathFinder, Loader):
    """Imports modules from their shipped sources, before anything on the disk."""

    current: ShippedModules | None = None

    def __init__(self, sources: Sources) -> None:
        self.sources = sources

    @classmethod
    def install(cls, sources: Sources) -> None:
        """Replaces the sources shipped before; modules that have changed are imported again."""
        if cls.current is not None:
            if cls.current.sources == sources:
                return
            sys.meta_path.remove(cls.current)
            for name in cls.current.sources:
                sys.modules.pop(name, None)
        cls.current = cls(sources)
        sys.meta_path.insert(0, cls.current)

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if fullname not in self.sources:
            return None
        _, file, package = self.sources[fullname]
        spec = spec_from_loader(fullname, self, origin=file, is_package=package)
        if spec is not None:
            spec.has_location = True  # sets __file__
            if package:
                spec.submodule_search_locations = [os.path.dirname(file)]
        return spec

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        source, file, _ = self.sources[module.__name__]
        exec(compile(source, file, "exec"), module.__dict__)


class _ResultPickler(cloudpickle.Pickler):  # type: ignore[misc]
    """Names what the caller's ``__main__`` defines instead of sending it back by value.

    By value, the caller's own classes would be overwritten with the worker's copies of their attributes.
    """

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, (type, FunctionType)) and value.__module__ == "__main__" and "<" not in value.__qualname__:
            return _from_main, (value.__qualname__,)
        return super().reducer_override(value)


def _pickled(pickler: Any, value: Any, failed: str, fix: str) -> np.ndarray:
    file = io.BytesIO()
    try:
        pickler(file).dump(value)
    except Exception as error:
        raise InputError(f"{failed} ({str(error).splitlines()[0]}): {fix}.") from error
    return np.frombuffer(file.getbuffer(), np.uint8)


def _from_main(qualname: str) -> Any:
    return reduce(getattr, qualname.split("."), sys.modules["__main__"])


def _installed(path: str) -> bool:
    """Whether a file or folder belongs to Python itself or to an installed package."""
    there = Path(path)
    standard = {Path(sysconfig.get_path(n)) for n in ("stdlib", "platstdlib")}
    return bool({"site-packages", "dist-packages"} & set(there.parts) or standard & {there, *there.parents})


def _has_distribution(name: str) -> bool:
    try:
        distribution(name)
    except (PackageNotFoundError, ValueError):
        return False
    return True
