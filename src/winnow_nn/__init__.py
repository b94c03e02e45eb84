"""The command ``winnow``, started outside of the package ``winnow``.

PyPI has another distribution that installs a package of this name (``winnow``, a JSON-schema library), and whichever was
installed last owns ``winnow/__init__.py``. Importing anything of ``winnow`` runs that file, so what checks it has to be elsewhere.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

DISTRIBUTION = "winnow-nn"
_AGAIN = f"install {DISTRIBUTION} again with --force-reinstall --no-deps"


def problem() -> str | None:
    """One sentence where ``import winnow`` would not give this distribution's package; None where it would. Imports nothing."""
    found = find_spec("winnow")
    if found is None:
        return f"the package winnow is missing: {_AGAIN}."
    if found.origin is None:  # what is left of the package after `pip uninstall winnow`
        place = ", ".join(found.submodule_search_locations or ())
        return f"{place} lacks its __init__.py, as after pip uninstall winnow (another package): {_AGAIN}."
    if not Path(found.origin).is_file() or DISTRIBUTION.encode() not in Path(found.origin).read_bytes():
        return (
            f"{found.origin} belongs to another package named winnow (PyPI has a JSON-schema library of that name): "
            f"pip uninstall winnow, then {_AGAIN}."
        )
    return None


def main() -> None:
    """Entry point of the command: the command line of ``winnow``, or exit code 1 where that is someone else's package."""
    if (sentence := problem()) is not None:
        print(f"winnow: {sentence}", file=sys.stderr)
        sys.exit(1)
    from winnow.cli import main as run

    run()
