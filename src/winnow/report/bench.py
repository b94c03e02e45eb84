"""bench.json and bench.html: where they lie, how they are written, and what they show."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from winnow import words
from winnow.disk.ownership import claim
from winnow.errors import FormatError, InputError, WinnowError
from winnow.report import speed, speed_tables, tables
from winnow.report.schema import Report
from winnow.report.speed_schema import BENCH_FORMAT, Bench, Measure

DATA = "bench.json"
OWN = ("packed", "accelerated")  # the first word of contenders that run the packed weights
TONES = {"good": "Faster here", "mixed": "It depends", "bad": "Not faster here"}


def target(out: str | os.PathLike[str] | None, folder: Path | None) -> Path | None:
    """The JSON file to write: ``out``, else bench.json in the artifact's folder, else none. Checked before any work.

    Raises:
        InputError: not a .json file, in a folder that does not exist, or in the way of something that is no bench.
    """
    if out is None and folder is None:
        return None
    path = Path(out) if out is not None else folder / DATA  # type: ignore[operator]
    if path.suffix != ".json" or path.is_dir():
        raise InputError(f"--out {out} must name a .json file: a page of the same name is written beside it.")
    if not path.absolute().parent.is_dir():
        raise InputError(f"--out {out} is in a folder that does not exist: make it first.")
    for place in (path, page_of(path)):
        if os.path.lexists(place) and not (place.is_file() and _is_bench(path)):
            raise InputError(f"{place} is there and is no bench of winnow's: choose another --out, or move it.")
    return path


def _is_bench(data: Path) -> bool:
    """Whether a file is a bench of some version of winnow."""
    import json

    try:
        found = json.loads(data.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(found, dict) and type(found.get("format")) is int and {"contenders", "measures"} <= found.keys()


def page_of(data: Path) -> Path:
    return data.with_suffix(".html")


def write(bench: Bench, data: Path) -> None:
    """Writes the JSON and its page; in a folder with a report, the report's page is drawn again with it."""
    from winnow.report import html

    try:
        if data.name == DATA:
            claim(data.parent, DATA, page_of(data).name)
        html.replace(data, bench.to_json())
        html.replace(page_of(data), html.template("bench.html").render(**page(bench, data.name)) + "\n")
        if data.name == DATA and (data.parent / html.DATA).exists():
            html.write(html.read(data.parent), data.parent)
    except OSError as error:
        raise WinnowError(f"could not write the bench to {data.parent}: {error.strerror or error}") from error


def read(data: Path) -> Bench | None:
    """The bench stored in a file; None where there is none. Raises FormatError for a damaged or unknown one."""
    import json

    from pydantic import ValidationError

    try:
        raw = json.loads(data.read_bytes())
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{data} is damaged (not JSON): run winnow bench again, or delete it") from error
    version = raw.get("format") if isinstance(raw, dict) else None
    if version != BENCH_FORMAT:
        raise FormatError(
            f"{data} has bench format {version!r}, this winnow reads {BENCH_FORMAT}: run winnow bench again"
        )
    try:
        return Bench.model_validate(raw)
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors(include_url=False)[0]["loc"])
        raise FormatError(f"{data} is damaged ({where}): run winnow bench again, or delete it") from error


def page(bench: Bench, data: str) -> dict[str, Any]:
    """What bench.html shows."""
    return {
        "title": words.clip_middle(Path(bench.model).name if Path(bench.model).is_dir() else bench.model, 80),
        "subtitle": [t for t in (bench.architecture, bench.machine.get("cpu"), _threads(bench)) if t],
        "created": words.when(bench.created),
        "tone": TONES[headline(bench)[1]],
        "interrupted": bench.interrupted,
        "machine": tables.plain_rows({**bench.machine, "ram": words.size(bench.machine.get("ram"))}),
        "data": data,
        "speed": view(bench, None),
    }


def view(bench: Bench | None, report: Report | None) -> dict[str, Any] | None:
    """What the speed chapter shows, in bench.html and in a report; None where there is nothing."""
    quick = report.speed if report is not None else None
    if bench is None and quick is None:
        return None
    found: dict[str, Any] = {
        "line": words.capital(speed_tables.line(quick)),
        "kernels": speed_tables.kernels(quick.kernels) if quick is not None else "",
        "bench": bench is not None,
    }
    if bench is None:
        return found
    said, tone = headline(bench)
    kinds = {c.kind for c in bench.contenders}
    tops = {case.name: next((m for m in bench.measures if m.case == case.name), None) for case in bench.cases}
    far = any(
        top is not None and m.times.median > speed.BEYOND * top.times.median
        for m in bench.measures
        for top in [tops.get(m.case)]
    )
    alike = speed.distinct(bench.layers)
    hidden = len(alike) - speed.ROWS
    return {
        **found,
        "headline": said,
        "tone": tone,
        "quantized": "quantized" in kinds,
        "pruned": bool(kinds & {"pruned", "pruned+quantized"}),
        "limits": any(m.limit is not None for m in bench.measures),
        "differs": any(m.difference is not None for m in bench.measures),
        "beyond": "Bars with two cuts go on beyond three times dense." if far else "",
        "cached": _cached(bench),
        "cases_figure": tables.renditions(
            speed.draw_cases(bench, "speed-wide", 900, 12.5), speed.draw_cases(bench, "speed-narrow", 358, 11.5)
        ),
        "cases": speed_tables.cases(bench),
        "contenders": speed_tables.contenders(bench),
        "absent": [(a.name, a.reason) for a in bench.absent],
        "layers_figure": tables.renditions(
            speed.draw_layers(bench, "kernels-wide", 900, 12.0), speed.draw_layers(bench, "kernels-narrow", 358, 11.0)
        ),
        "layers": speed_tables.layers(bench) if bench.layers else None,
        "layers_left": f"The {speed.ROWS} that take longest of {len(alike)} distinct ones are drawn."
        if hidden > 0
        else "",
        "notes": bench.notes,
        "facts": speed_tables.facts(bench),
    }


def _cached(bench: Bench) -> str:
    """Why some bars have no limit."""
    b = bench.bandwidth
    if b is None or not any(c.weight_bytes is not None and c.weight_bytes <= b.cache for c in bench.contenders):
        return ""
    return f"Weights that fit the largest cache ({words.size(b.cache)}) need not be read from memory: no limit is drawn for them."


def headline(bench: Bench) -> tuple[str, str]:
    """The answer in a sentence, and its tone: the packed model against dense, and against the best of the others.

    Speaks of decoding where there is some, else of the first case.
    """
    case = next((c for c in bench.cases if c.what == "decode"), bench.cases[0])
    rows = [m for m in bench.measures if m.case == case.name]
    own = [m for m in rows if m.contender.split()[0] in OWN and m.ratio is not None]
    others = [m for m in rows if m not in own]
    best_other = min(others, key=_median, default=None)
    place = words.capital(case.name)
    if not own:
        assert best_other is not None
        return f"{place}: {best_other.contender} is the fastest of {len(rows)} measured, {_milli(best_other)}.", "mixed"
    best = min(own, key=_median)
    dense = rows[0]
    assert best.ratio is not None
    said = f"{place}: {best.contender} takes {_milli(best)}, {dense.contender} {_milli(dense)}, "
    wins = (best.ratio_low if best.ratio_low is not None else best.ratio) > 1
    loses = (best.ratio_high if best.ratio_high is not None else best.ratio) < 1
    said += f"{speed.times(best.ratio)} as fast" if wins or loses else "no difference that could be told from noise"
    if best_other is not None and best_other is not dense and _median(best_other) < _median(best):
        return f"{said}; {best_other.contender} is faster, {_milli(best_other)}.", "mixed" if wins else "bad"
    return f"{said}.", "good" if wins else "bad"


def _median(m: Measure) -> float:
    return m.times.median


def _milli(m: Measure) -> str:
    return speed.milli(m.times.median)


def _threads(bench: Bench) -> str:
    n = bench.machine.get("threads")
    return "" if n is None else f"{n} thread{'s' if n != 1 else ''}"
