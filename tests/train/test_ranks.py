"""Several processes that train one model: fully_shard and DistributedDataParallel over gloo, against one process."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from small import classifier, points
from winnow.errors import InputError
from winnow.train import SET, Attached, Fixed, Gradual, RandomMasks, RigL, SignIn, attach

X, Y = points()
X, Y = X.double(), torch.as_tensor(Y)
ROWS, STEPS, STOP = 32, 8, 4

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")


def model() -> nn.Module:
    """Of odd sizes, so that shards are uneven and one is empty of rows."""
    torch.manual_seed(3)
    made = nn.Sequential(nn.Linear(12, 9), nn.GELU(), nn.Linear(9, 1), nn.Linear(1, 7), nn.GELU(), nn.Linear(7, 3))
    return made.double()


METHODS: dict[str, Callable[[], Any]] = {
    "fixed": lambda: Fixed(random_half()),
    "random": lambda: RandomMasks(0.6),
    "gradual": lambda: Gradual(0.6, end=6, every=2),
    "set": lambda: SET(0.6, end=6, every=2),
    "rigl": lambda: RigL(0.6, end=6, every=2),
    "sign-in": lambda: SignIn(RandomMasks(0.6), every=3),
    "sign-in, gradual": lambda: SignIn(Gradual(0.6, end=6, every=2), every=3),
    "sign-in, rigl": lambda: SignIn(RigL(0.6, end=6, every=2), every=3),
}
OPTIMIZERS: dict[str, Any] = {
    "sgd": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1, foreach=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, 0.05),
}


TRIED = [(m, "adamw" if "sign" in m else "sgd") for m in METHODS]
TRIED += [("sign-in, rigl", "sgd"), ("sign-in", "adagrad")]


def random_half() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        f"{i}.weight": torch.rand(s, generator=generator) < 0.5 for i, s in ((0, (9, 12)), (2, (1, 9)), (3, (7, 1)))
    }


def train(attached: Attached, called: nn.Module, first: int, last: int, rank: int = 0, ranks: int = 1) -> None:
    """The rows of a step are divided among the ranks, whose gradients are averaged."""
    for step in range(first, last):
        rows = slice(ROWS * step + ROWS // ranks * rank, ROWS * step + ROWS // ranks * (rank + 1))
        attached.optimizer.zero_grad()
        F.cross_entropy(called(X[rows]), Y[rows]).backward()
        attached.optimizer.step()


@pytest.fixture(scope="module")
def both(tmp_path_factory: Any) -> list[dict[str, Any]]:
    """What two processes have found, by test: started once, for that takes longer than the tests."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(_process, (str(folder),), nprocs=2)
    return [torch.load(folder / str(rank), weights_only=False) for rank in range(2)]


def _process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2, timeout=timedelta(seconds=100)
    )
    try:
        found = {work.__name__: work(rank, Path(folder)) for work in (in_shards, in_parallel, refusals)}
        torch.save(found, f"{folder}/{rank}")
    finally:
        torch.distributed.destroy_process_group()


def sharded() -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    made, mesh = model(), init_device_mesh("cpu", (2,))
    fully_shard(made[0], mesh=mesh)
    return fully_shard(made, mesh=mesh)


def in_shards(rank: int, folder: Path) -> dict[Any, Any]:
    """For every method and optimizer: a training in one go, and one that goes on from a sharded checkpoint."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

    found = {}
    for number, (method, optimizer) in enumerate(TRIED):
        runs = []
        for resumed in (False, True):
            made = sharded()
            attached = attach(made, OPTIMIZERS[optimizer](made.parameters()), METHODS[method]())
            if not resumed:
                train(attached, made, 0, STOP, rank, 2)
                weights, moments = get_state_dict(made, attached.optimizer)
                dcp.save({"model": weights, "optimizer": moments}, checkpoint_id=folder / f"c{number}")
                torch.save(attached.state_dict(), folder / f"state{rank}")
            else:
                weights, moments = get_state_dict(made, attached.optimizer)
                dcp.load({"model": weights, "optimizer": moments}, checkpoint_id=folder / f"c{number}")
                set_state_dict(made, attached.optimizer, model_state_dict=weights, optim_state_dict=moments)
                attached.load_state_dict(torch.load(folder / f"state{rank}", weights_only=True))
                assert attached.step == STOP
            train(attached, made, STOP, STEPS, rank, 2)
            made(X)  # leaves the outer parameters whole in the module
            health = attached.method.health(attached) if method.startswith("sign-in") else {}
            assert attached.detach() is made
            runs.append(({n: p.full_tensor() for n, p in made.state_dict().items()}, attached.masks, health))
        found[method, optimizer] = runs
    return found


def test_sharded_parameters(both):
    """Masks, weights and Sign-In's health of every method are those of one process, in both, also when resumed."""
    one, two = (found["in_shards"] for found in both)
    for method, optimizer in TRIED:
        plain = model()
        alone = attach(plain, OPTIMIZERS[optimizer](plain.parameters()), METHODS[method]())
        train(alone, plain, 0, STEPS)
        health = alone.method.health(alone) if method.startswith("sign-in") else {}
        for weights, masks, found in (*one[method, optimizer], *two[method, optimizer]):
            assert masks == alone.masks and masks.zeros == sum(
                int((w == 0).sum()) for n, w in weights.items() if n in masks
            )
            assert found == pytest.approx(health)
            for n, w in weights.items():
                torch.testing.assert_close(w, plain.state_dict()[n], rtol=1e-9, atol=1e-12, msg=f"{method}, {n}")
        assert masks.zeros >= round(0.5 * masks.numel) and not torch.equal(plain[0].weight, model()[0].weight)
        for runs in (one[method, optimizer], two[method, optimizer]):
            for n, w in runs[0][0].items():
                assert torch.equal(w, runs[1][0][n]), (method, n)  # resumed, bit for bit


def in_parallel(rank: int, folder: Path) -> Any:
    parallel = nn.parallel.DistributedDataParallel(classifier().double())
    optimizer = torch.optim.SGD(parallel.parameters(), 0.1, momentum=0.9)
    attached = attach(parallel, optimizer, SignIn(RigL(0.7, end=6, every=2), every=3))
    train(attached, parallel, 0, STEPS, rank, 2)
    return attached.masks, attached.model.state_dict(), attached.method.resets, attached.method.health(attached)


def test_distributed_data_parallel(both):
    """Each process with half of every batch, resets in both: masks and weights are those of one process with all of it."""
    (masks, first, *rest), (others, second, *others_rest) = (found["in_parallel"] for found in both)
    assert masks == others and rest == others_rest and all(torch.equal(first[n], second[n]) for n in first)
    plain = classifier().double()
    method = SignIn(RigL(0.7, end=6, every=2), every=3)
    alone = attach(plain, torch.optim.SGD(plain.parameters(), 0.1, momentum=0.9), method)
    train(alone, plain, 0, STEPS)
    assert alone.masks == masks and rest[0] == method.resets == 2 and rest[1] == pytest.approx(method.health(alone))
    for name, weight in plain.state_dict().items():
        torch.testing.assert_close(first[name], weight, rtol=1e-9, atol=1e-12)


def refusals(rank: int, folder: Path) -> list[str]:
    """What attach says where the processes differ; after each of them it works as if nothing had been."""

    def said(parallel: bool, method: Any, **options: Any) -> str:
        made = nn.parallel.DistributedDataParallel(model()) if parallel else sharded()
        optimizer = torch.optim.SGD(made.parameters(), 0.1)
        with pytest.raises(InputError) as caught:
            attach(made, optimizer, method, **options)
        attach(made, optimizer, RandomMasks(0.5)).detach()
        return str(caught.value)

    from torch.distributed.fsdp import FullyShardedDataParallel

    flat = FullyShardedDataParallel(model(), device_id=torch.device("cpu"))
    with pytest.raises(InputError, match=r"whose parameters are flat: use torch\.distributed\.fsdp\.fully_shard"):
        attach(flat, torch.optim.SGD(flat.parameters(), 0.1), RandomMasks(0.5))
    plain = model()
    state = attach(plain, torch.optim.SGD(plain.parameters(), 0.1), RandomMasks(0.5)).state_dict()
    return [
        said(True, Fixed(masks := {n: k if rank else k.roll(1) for n, k in random_half().items()})),
        said(False, Fixed(masks)),
        said(True, SignIn(RigL(0.5, end=9, every=2 + rank), every=5)),
        said(False, RandomMasks(0.5) if rank else Gradual(0.5, end=2)),
        said(True, RandomMasks(0.5), state={**state, "step": rank}),
        said(False, RandomMasks(0.5), exclude=["0"] if rank else []),
    ]


def test_processes_that_disagree(both):
    one, two = (found["refusals"] for found in both)
    assert one == two and all("\n" not in sentence for sentence in one)
    words = [
        "masks: draw them from one seed",
        "masks",
        "method: give every process the same",
        "method",
        "checkpoint: load the same",
        "prunable tensors",
    ]
    for sentence, word in zip(one, words, strict=True):
        assert sentence.startswith(f"processes 0 and 1 disagree about the {word}")
