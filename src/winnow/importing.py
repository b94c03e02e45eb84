"""``package.module:function``: what a person names, found and called without running anything else.

Installed packages come first and the current folder last, so that a file there which has the name of one (numpy.py, yaml.py)
is never run in its place.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from typing import Any

from winnow.errors import InputError, WinnowError


def is_named(spec: str) -> bool:
    """Whether a text has the form ``package.module:function``."""
    module, _, function = spec.rpartition(":")
    return function.isidentifier() and bool(module) and all(part.isidentifier() for part in module.split("."))


def exists(module: str) -> bool:
    """Whether a module can be imported. Packages above it are imported, it is not."""
    _append_current_folder()
    try:
        return importlib.util.find_spec(module) is not None
    except Exception:  # whatever the packages above it raise
        return False


def find(spec: str, gives: str) -> Any:
    """The function that ``spec`` names. ``gives``: what it is to return, for the error.

    Raises:
        InputError: there is no such module or function, importing it fails, or it is nothing that can be called.
    """
    module, _, function = spec.rpartition(":")
    _append_current_folder()
    try:
        found = importlib.import_module(module)
    except WinnowError:
        raise
    except (ImportError, ValueError) as error:
        raise InputError(
            f"{spec} cannot be found ({error}): give package.module:function importable from here."
        ) from None
    except (Exception, SystemExit) as error:
        raise InputError(f"{spec}: importing {module} fails with {_describe_error(error)}: fix it.") from error
    if not hasattr(found, function):
        raise InputError(
            f"{spec} cannot be found (module {module!r} has no attribute {function!r}{_hiding(found, module)}): "
            "give package.module:function importable from here."
        )
    target = getattr(found, function)
    if not callable(target):
        raise InputError(f"{spec} is a {type(target).__name__}: name a function that returns {gives}.")
    return target


def call(spec: str, gives: str) -> Any:
    """What the function that ``spec`` names returns, called without arguments.

    Raises:
        InputError: as :func:`find`; it wants arguments, or it fails (the sentence names error and line).
    """
    target = find(spec, gives)
    wanted = _required_arguments(target)
    if wanted:
        raise InputError(
            f"{spec} requires the argument{'s' if len(wanted) > 1 else ''} {', '.join(wanted)}: name a function without any that returns {gives}."
        )
    try:
        return target()
    except (WinnowError, MemoryError):
        raise
    except (Exception, SystemExit) as error:
        raise InputError(
            f"{spec} fails with {_describe_error(error)}: name a function that returns {gives}."
        ) from error


def _append_current_folder() -> None:
    here = os.getcwd()
    if here not in sys.path:
        sys.path.append(here)


def _required_arguments(target: Any) -> list[str]:
    """Names of the arguments that a call cannot do without."""
    try:
        parameters = inspect.signature(target).parameters.values()
    except (TypeError, ValueError):  # some built-in functions have none that can be read
        return []
    free = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in parameters if p.default is inspect.Parameter.empty and p.kind not in free]


def _hiding(found: Any, module: str) -> str:
    """Where an installed module has the name of a file in the current folder."""
    top = module.split(".")[0]
    here = [path for path in (f"{top}.py", top) if os.path.exists(path)]
    file = getattr(found, "__file__", None) or "a built-in module"
    if not here or os.path.dirname(os.path.abspath(file)).startswith(os.getcwd()):
        return ""
    return f" in {file}, which comes before {here[0]} in this folder: rename yours"


def _describe_error(error: BaseException) -> str:
    """An error in a few words, with the line it comes from."""
    message = (str(error).strip().splitlines() or [""])[0][:160]
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({os.path.basename(frames[-1].filename)} line {frames[-1].lineno})" if frames else ""
    if isinstance(error, SyntaxError) and error.filename:
        place = f" ({os.path.basename(error.filename)} line {error.lineno})"
    return f"{type(error).__name__}{': ' + message if message else ''}{place}"
