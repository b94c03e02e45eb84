"""Whether the disk holds what a compression will write, before it begins."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from winnow.budget import index_bits_per_weight
from winnow.compression.counts import VALUE_BITS
from winnow.compression.recipe import Recipe
from winnow.disk.work import folder_bytes, output_path, work_folder
from winnow.errors import InputError
from winnow.masks.structure import within_tensor
from winnow.words import size

if TYPE_CHECKING:
    from winnow.compression.setup import Setup

SURE = 0.95  # share of the bytes reckoned that is needed whatever the masks come to


def disk_bytes(setup: Setup) -> int:
    """What lies on the disk at the end of a run: every candidate, packed, and the folders that are written.

    Of a search for a limit of loss only the baselines are known.
    """
    candidates = [r for c in setup.plain() if (r := c.recipe) is not None]
    return _packed(setup, [*setup.recipes, *candidates] if setup.job.max_drop is None else candidates) + sum(
        bytes_ for *_, bytes_ in setup.plan.rates
    )


def _packed(setup: Setup, recipes: Iterable[Recipe]) -> int:
    """Bytes of the packed tensors of candidates."""
    host, matrices, bits = setup.host, setup.scope.prunables, 0.0
    for recipe in recipes:
        density = 1 - recipe.zeros / setup.scope.numel
        index = index_bits_per_weight(within_tensor(recipe.pattern)) if recipe.zeros else 0.0
        for name, p in matrices.items():
            bits += p.numel * (density * VALUE_BITS.get(recipe.values, 8 * host.stored_dtype[name].itemsize) + index)
            bits += 16 * p.rows * {"int8": 1, "int4": -(-p.cols // recipe.group_size)}.get(recipe.values, 0)
    return int(bits / 8)


def require_space(out: Path | None, folder: Path, needed: int) -> None:
    """Raises InputError where ``folder``, or what will be made there, surely does not hold ``needed`` bytes.

    ``out``: the output that is meant, whose work of an earlier run counts as there already; None: a temporary folder.
    """
    place = next(p for p in (folder, *folder.parents) if p.exists())
    if out is not None and (work := work_folder(out)).is_dir():
        needed -= folder_bytes(work)
    free = shutil.disk_usage(place).free
    if SURE * needed <= free:
        return
    where = "the temporary folder" if out is None else str(out)
    fix = (
        "give a folder with --out, or set TMPDIR to another disk"
        if out is None
        else "free some space, or choose another --out"
    )
    raise InputError(
        f"{where} will take about {size(needed)} of disk while it is made, and {size(free)} are free there: {fix}.",
        option="out",
    )


def require_space_for(setup: Setup) -> None:
    """The same of a job with an output. Raises InputError."""
    if setup.job.out is not None:
        require_space(setup.job.out, output_path(setup.job.out), setup.plan.disk)
