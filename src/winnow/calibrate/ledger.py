"""The memory limit: a run's peak is estimated before it starts and kept under the limit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from winnow.errors import InputError
from winnow.masks.prunable import Prunable

COPIES = 7  # float32 copies of the weights in work: weight, scores, ranking, solution, packing
ALLOWANCE = 48 << 20  # bytes for buffers of files, the report, and what the estimate leaves out
MARGIN = 0.06  # of the limit, for the allocator and what the estimate leaves out
# float32 copies of a block's weights while it is fitted: start, best, leaves, gradients, Adam's two moments, masks, masked
FIT_COPIES = 8


@dataclass(frozen=True)
class Fitting:
    """What a solver adds that fits whole blocks by gradient: hidden states kept beside, and a step's graph.

    ``states``: hidden states of all calibration batches, as many times (2 without a fit). ``graph``: bytes that the forward
    of one step leaves for its backward.
    """

    states: int
    graph: int


@dataclass(frozen=True)
class Ledger:
    """Bytes by purpose at the moment of the highest need, beside what is resident already."""

    resident: int  # interpreter, libraries, and whatever is loaded now
    outside: int  # embeddings, norms, head
    block: int  # the largest block, in the model's dtype
    solving: int  # working copies and Gram matrices of one group of layers
    activations: int  # hidden states of all calibration batches (0 when they live on disk)
    forward: int  # temporaries of one batch in one block
    spilled: bool = False
    limit: int | None = None
    rest: int = 0  # the largest unpruned matrix while it is stored in fewer bits: dense, codes, packed

    @property
    def need(self) -> int:
        return (
            ALLOWANCE
            + self.resident
            + self.outside
            + self.block
            + max(self.solving, self.forward, self.rest)
            + self.activations
        )

    def table(self) -> list[tuple[str, int]]:
        return [
            ("resident before the start", self.resident),
            ("embeddings, norms, head", self.outside),
            ("largest block", self.block),
            ("solver and Gram matrices", self.solving),
            ("activations" + (" (on disk)" if self.spilled else ""), self.activations),
            ("one forward", self.forward),
        ]


def estimate_memory(
    *,
    units: Sequence[Sequence[Prunable]],
    block_bytes: int,
    outside_bytes: int,
    tokens: int,
    batch_tokens: int,
    hidden: int,
    itemsize: int,
    gram: bool,
    codes: bool,
    resident: int,
    limit: int | None,
    fitting: Fitting | None = None,
    rest: int = 0,
) -> Ledger:
    """Memory that pruning a model block by block needs, with the activations on disk when memory is short.

    A batch's temporaries are estimated at the widest layer input, four of them alive at once in ``itemsize`` bytes
    and one in float32 for the statistics. A solver holds :data:`COPIES` of the weights it works on.

    Raises:
        InputError: the limit cannot be kept; the sentence says what would be enough.
    """
    matrices = [p for unit in units for p in unit]
    widest = max((p.cols for p in matrices), default=hidden)
    tallest = max((p.rows // p.parts for p in matrices), default=hidden)
    largest = max((p.numel for p in matrices), default=0)
    if gram:
        # Layers of one width are taken to share an input (q, k, v; gate, up): solved together.
        widths: Counter[tuple[int, int]] = Counter()
        for i, unit in enumerate(units):
            for p in unit:
                widths[i, p.cols] += p.numel
        shared = max(widths.values(), default=0)
        grams = max((sum({p.cols: p.parts * p.cols**2 for p in unit}.values()) for unit in units), default=0)
        solving = 4 * COPIES * min(shared, 3 * largest) + 4 * grams + 8 * 3 * widest**2
    else:
        solving = 4 * COPIES * largest
    block = max((sum(p.numel for p in unit) for unit in units), default=0)
    solving += (largest if codes else 0) + block * itemsize * 3 // 4  # packed, until stored
    forward = batch_tokens * (4 * max(widest, tallest) * itemsize + 4 * widest)
    states = 2 if fitting is None else fitting.states
    if fitting is not None:
        solving = max(solving, 4 * FIT_COPIES * block + fitting.graph)
    kept = states * tokens * hidden * itemsize
    in_memory = Ledger(resident, outside_bytes, block_bytes, solving, kept, forward, limit=limit, rest=rest)
    if limit is None or in_memory.need <= limit * (1 - MARGIN):
        return in_memory
    on_disk = replace(in_memory, activations=states * batch_tokens * hidden * itemsize, spilled=True)
    if on_disk.need <= limit * (1 - MARGIN):
        return on_disk
    enough = on_disk.need / (1 - MARGIN)
    raise InputError(
        f"--ram {limit / 1e9:.2f}GB cannot be kept: this model needs about {enough / 1e9:.2f}GB; raise the limit or lower --batch-size."
    )
