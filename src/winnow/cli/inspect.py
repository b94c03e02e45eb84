"""``winnow inspect``"""

from __future__ import annotations

from typing import Any

from winnow.cli.flags import Json, Model, given, with_options
from winnow.cli.output import show


@with_options("include", "exclude", "weights", "trust_remote_code")
def inspect(model: Model, *, as_json: Json = False, **options: Any) -> None:
    """List every layer of a model or packed folder: shape, whether it can be pruned and why not, sparsity, bits."""
    from winnow.verbs.inspect import inspect as look
    from winnow.verbs.inspect import inspection_table

    found = look(model, **given(options))
    show(inspection_table(found), found, as_json)
