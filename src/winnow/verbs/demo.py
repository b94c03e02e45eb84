"""``demo``: the main job on data that every installation has."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from winnow.terminal.progress import Expected, ProgressOption, expect, watch

FACTORY = "winnow.demo_data:digits_vit"

if TYPE_CHECKING:
    from winnow.compression.result import Result


def run(
    out: Path,
    *,
    sparsity: str = "0.7",
    seed: int = 0,
    overwrite: bool = False,
    progress: ProgressOption = None,
) -> Result:
    """Trains a small vision transformer on scikit-learn's digits (1,797 real images), compresses it to zeros and int4, and reports.

    Writes the dense weights and the data beside the result (``OUT-data``), so that the command in the report can be
    run by hand and varied.

    Raises:
        InputError: one of the two folders holds something else, or, unless ``overwrite``, the finished result of another
            command.
    """
    from winnow.compression.job import Job
    from winnow.compression.verb import compress
    from winnow.demo_data import EPOCHS, save_digits
    from winnow.disk.made import describe
    from winnow.disk.work import check_output
    from winnow.formats.output import OutputFolder

    job = Job(FACTORY, sparsity=sparsity, values="int4", seed=seed)  # raises InputError before any training
    check_output(out, made=job.described(None), overwrite=overwrite)  # which weights these are comes of the training
    with watch(progress) as stages:
        expect(stages, [Expected("training on digits", "training"), Expected("*", "compressing")])
        training = stages("training on digits")
        training(0, EPOCHS, "")
        place = Path(out).with_name(Path(out).name + "-data")
        beside = OutputFolder(place, "data", made=describe("demo", {"seed": seed}, {}), overwrite=overwrite)
        try:
            data = save_digits(beside.path, seed=seed, progress=lambda done, total: training(done, total, ""))
            beside.publish()
        finally:
            beside.discard()
        data = type(data)(*(place / file.name for file in data))
        command = (
            f"winnow compress {FACTORY} --weights {data.weights} --data {data.calibration} --eval {data.test} "
            f"--sparsity {sparsity} --values int4 --out {out}"
        )
        return compress(
            FACTORY, str(data.calibration), eval=str(data.test), weights=data.weights, sparsity=sparsity, values="int4", out=out, seed=seed,
            overwrite=True, progress=stages, command=command,
        )  # fmt: skip
