"""The table of linear.py: each cell against the best dense kernel, the byte ratio, the bandwidth limit and the target."""

from __future__ import annotations

from typing import Any

Record = dict[str, Any]
SHARE = 0.85  # of the byte ratio, that a batch of one should reach

# (profile or None, values, batch, sparsity) -> least speedup over the best dense kernel of the same value type.
TARGETS: dict[tuple[str | None, str, int, float], float] = {
    (None, "bf16", 1, 0.5): 1.5, (None, "bf16", 1, 0.7): 2.3, (None, "bf16", 1, 0.9): 5.0,
    (None, "int8", 1, 0.5): 1.35, (None, "int8", 1, 0.7): 2.0, (None, "int4", 1, 0.5): 1.1,
    ("avx2", "fp32", 1, 0.7): 2.0, ("avx2", "int8", 1, 0.7): 1.6,
    ("amx", "bf16", 8, 0.7): 1.2, ("amx", "bf16", 16, 0.7): 1.2,
    ("no amx", "int8a", 128, 0.8): 1.5,
    ("no amx", "fp32", 1, 0.9): 2.0, ("no amx", "fp32", 8, 0.9): 2.0, ("no amx", "fp32", 128, 0.9): 2.0,
}  # fmt: skip


def target(record: Record, sparsity: float, byte_ratio: float) -> float | None:
    """Least speedup wanted of a cell, None where none is named."""
    profile, values, batch = record["profile"], record["values"], record["batch"]
    if batch == 256 and not values.endswith("a"):
        return 1 / 1.1  # expansion may cost a tenth
    labels = [profile, "amx" if record.get("amx") and profile == "all" else "no amx"]
    labels += [] if profile == "avx2" else [None]
    wanted = [t for label in labels if (t := TARGETS.get((label, values, batch, sparsity))) is not None]
    if batch == 1 and not values.endswith("a") and profile != "avx2":
        wanted.append(SHARE * byte_ratio)
    return max(wanted) if wanted else None


def rows_of(record: Record, by: str = "wall") -> list[dict[str, Any]]:
    """One row a sparsity: the fastest way of winnow, the fastest dense contender, and what follows from both."""
    contenders = record["contenders"]
    dense = _best([c for c in contenders if c["role"] == "dense"], by)
    read = _best([c for c in contenders if c["role"] == "read"], by)
    bandwidth = read["bytes"] / read[by] if read else None
    rows = []
    for sparsity in sorted({c["sparsity"] for c in contenders if c["role"] == "winnow"}):
        same = [c for c in contenders if c["sparsity"] == sparsity]
        ours = _best([c for c in same if c["role"] == "winnow" and " times " not in c["name"]], by)
        times = _best([c for c in same if c["role"] == "winnow" and " times " in c["name"]], by)
        peer = _best([c for c in same if c["role"] == "sparse"], by)
        # A feature-major peer is compared with the feature-major product, any other with the layer itself.
        own = times if peer and "CSR" in peer["name"] else ours
        if ours is None or dense is None:
            continue
        byte_ratio, speed_up = dense["bytes"] / ours["bytes"], dense[by] / ours[by]
        wanted = target(record, sparsity, byte_ratio)
        rows.append(
            {
                "sparsity": sparsity, "ours": ours, "dense": dense, "byte_ratio": byte_ratio, "speed_up": speed_up,
                "share": speed_up / byte_ratio, "limit": ours["bytes"] / bandwidth if bandwidth else None,
                "over_sparse": peer[by] / own[by] if peer and own else None,
                "target": wanted, "met": None if wanted is None else speed_up >= wanted,
            }
        )  # fmt: skip
    return rows


def _place(record: Record) -> tuple[Any, ...]:
    return record["profile"], record["threads"], record["shape"], record["batch"]


def _best(contenders: list[dict[str, Any]], by: str) -> dict[str, Any] | None:
    return min(contenders, key=lambda c: c[by], default=None)


def print_table(records: list[Record], by: str = "wall") -> None:
    """Markdown: one line a cell and sparsity, in the order of measuring (a cell measured again counts once, the last)."""
    print("| profile | threads | layer | values | batch | sparsity | winnow | ms | GB/s | best dense | ms | GB/s | speedup "
          "| byte ratio | share | bound ms | over sparse peer | over any dense | target | |")  # fmt: skip
    print("|---|--:|---|---|--:|--:|---|--:|--:|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|---|")
    met = asked = 0
    last = {(r["profile"], r["threads"], r["shape"], r["values"], r["batch"], *r["sparsities"]): r for r in records}
    any_dense: dict[Any, float] = {}  # the fastest dense contender of any value type
    for r in last.values():
        for c in r["contenders"]:
            if c["role"] == "dense":
                any_dense[_place(r)] = min(any_dense.get(_place(r), c[by]), c[by])
    for record in last.values():
        for row in rows_of(record, by):
            ours, dense = row["ours"], row["dense"]
            asked += row["met"] is not None
            met += bool(row["met"])
            mark = {"yes": "", "partly": " (partly capped)", "no": " (not capped)"}[dense["capped"]]
            cells = [
                record["profile"], record["threads"], record["shape"], record["values"], record["batch"],
                f"{row['sparsity']:.0%}", ours["name"].removeprefix("winnow ").split()[0], f"{ours[by] * 1e3:.3f}",
                f"{ours['bytes'] / ours[by] / 1e9:.1f}", dense["name"] + (mark if record["profile"] != "all" else ""),
                f"{dense[by] * 1e3:.3f}", f"{dense['bytes'] / dense[by] / 1e9:.1f}", f"{row['speed_up']:.2f}×",
                f"{row['byte_ratio']:.2f}", f"{row['share']:.0%}", f"{row['limit'] * 1e3:.3f}" if row["limit"] else "",
                f"{row['over_sparse']:.2f}×" if row["over_sparse"] else "",
                f"{any_dense[_place(record)] / ours[by]:.2f}×", f"{row['target']:.2f}×" if row["target"] else "",
                "" if row["met"] is None else "met" if row["met"] else "missed",
            ]  # fmt: skip
            print("| " + " | ".join(map(str, cells)) + " |")
    loads = [load for r in last.values() for load in r["load"]]
    if loads:
        print(f"\n{met} of {asked} targets met; load average {min(loads):.1f} to {max(loads):.1f}; times by {by}")


def print_contenders(records: list[Record], by: str = "wall") -> None:
    """Markdown: every contender of the last round of every cell, fastest first."""
    print("| profile | threads | layer | batch | contender | waiting | sparsity | ms | spread | GB/s |")
    print("|---|--:|---|--:|---|---|--:|--:|--:|--:|")
    for record in records:
        start = [record["profile"], record["threads"], record["shape"], record["batch"]]
        for c in sorted(record["contenders"], key=lambda c: c[by]):
            spread = (max(c["walls"]) - min(c["walls"])) / c["wall"]
            cells = [*start, c["name"], c["policy"].lower(), f"{c['sparsity']:.0%}", f"{c[by] * 1e3:.3f}",
                     f"{spread:.0%}", f"{c['bytes'] / c[by] / 1e9:.1f}"]  # fmt: skip
            print("| " + " | ".join(map(str, cells)) + " |")
