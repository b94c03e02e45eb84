"""Does a model take the data at all, and answer with numbers? Found out on the first batch, before any work."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from winnow.data.records import Records, tensor_items
from winnow.errors import InputError, WinnowError
from winnow.forward.batch import first_example
from winnow.forward.model import call, evaluating, logits_of
from winnow.masks.outputs import answer_of

FEW = 256  # records looked at
# What a config calls the number of positions that a model knows.
POSITIONS = ("max_position_embeddings", "n_positions", "max_sequence_length")


@contextmanager
def explaining_errors(batch: Any, what: str) -> Iterator[None]:
    """Turns an error of the model (or loss) about a batch into one sentence that names the batch's shape.

    ``what`` data it is: "training" or "evaluation". The original error stays as the cause; want of memory, and an error
    without a batch to blame, pass as they are.
    """
    try:
        yield
    except (WinnowError, torch.OutOfMemoryError, NotImplementedError):
        raise
    except (RuntimeError, ValueError, IndexError) as error:
        raise InputError(_sentence(batch, what, error)) from error


def try_first(model: nn.Module, run: Callable[[], Any], what: str) -> None:
    """Lets ``run`` call the model on its first batch, cut to one example; nothing after that call is run.

    Where the model does not take the one example it gets the whole batch. Random numbers and the modes of the modules
    stay as they were.

    Raises:
        InputError: the model raises, whatever it is, or answers finite data with NaN: names the batch's shape and what
            the model said. Want of memory passes.
    """
    seen: list[Any] = [None]
    for cut in (True, False):

        def arrive(module: nn.Module, args: Any, kwargs: Any, cut: bool = cut) -> Any:
            seen[:] = [kwargs if kwargs else args[0] if len(args) == 1 else args]
            if not cut:
                return None
            first: Any = first_example(args) if args else args
            named: Any = first_example(kwargs) if kwargs else kwargs
            return None if first is None or named is None else (tuple(first), dict(named))

        handle = model.register_forward_pre_hook(arrive, with_kwargs=True)  # type: ignore[arg-type]
        try:
            with evaluating(model), torch.inference_mode(False), torch.no_grad(), torch.random.fork_rng(devices=[]):
                answer = answer_of(model, run)
        except (WinnowError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # whatever the code of a model raises
            if cut:
                continue
            raise InputError(_sentence(seen[0], what, error)) from error
        finally:
            handle.remove()
        _require_numbers(answer, seen[0], what)
        return


def _require_numbers(answer: Any, batch: Any, what: str) -> None:
    try:
        logits = logits_of(answer)
    except InputError:
        return  # no tensor: a task will say what it misses
    if not logits.is_floating_point() or not bool(logits.isnan().any()):
        return
    if all(bool(t.isfinite().all()) for t in _tensors(batch) if t.is_floating_point()):
        raise InputError(
            f"the model answers the {what} data with NaN though its input and weights are finite: repair the model, or run "
            "it in float32 (--dtype float32)."
        )


def _sentence(batch: Any, what: str, error: Exception) -> str:
    why = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200].rstrip(". ")
    if not isinstance(error, RuntimeError):
        why = f"{type(error).__name__}: {why}"
    # "[64, 20] float32", or by their names where the tensors have some.
    named = batch.items() if isinstance(batch, Mapping) else [("", t) for t in _tensors(batch)]
    shapes = " and ".join(
        f"{name} {list(t.shape)} {str(t.dtype).removeprefix('torch.')}".lstrip()
        for name, t in named
        if torch.is_tensor(t)
    )
    return (
        f"the model cannot take the {what} data, whose first batch is {shapes or 'no tensor'} ({why}): give data of the shape "
        "that it takes, or another model."
    )


def _tensors(batch: Any) -> list[torch.Tensor]:
    return [t for t in tree_leaves(dict(batch) if hasattr(batch, "keys") else batch) if torch.is_tensor(t)]


def check_length(model: nn.Module, config: Any, length: int | None) -> None:
    """Refuses texts that are longer than the model's table of positions.

    Models that reckon positions (rotary, relative) have no table and no such limit.

    Raises:
        InputError: there are fewer positions than ``length``.
    """
    config = getattr(config, "text_config", None) or config
    known = [n for name in POSITIONS if isinstance(n := getattr(config, name, None), int) and n > 1]
    if length is None or not known or length <= known[0]:
        return
    tables = {m.num_embeddings for m in model.modules() if isinstance(m, nn.Embedding)}
    # Some keep a few rows in front of the first position.
    if any(known[0] <= rows <= known[0] + 2 for rows in tables):
        raise InputError(
            f"--length {length} is more than the {known[0]} positions that this model knows: give at most that.",
            option="length",
        )


def require_sound(model: nn.Module, prunable: Iterable[str] = ()) -> None:
    """Raises InputError for NaN in any parameter or buffer, and for infinity in the ``prunable`` ones.

    Masks of attention are often kept as buffers of minus infinity: elsewhere infinity may be meant.
    """
    weights = set(prunable)
    for name, given in (*model.named_parameters(), *model.named_buffers()):
        tensor = given.detach()
        if tensor.is_meta or not (tensor.is_floating_point() or tensor.is_complex()):
            continue
        if bool(tensor.isnan().any()):
            raise InputError(f"{name} holds NaN: repair the checkpoint.")
        if name in weights and not bool(tensor.isfinite().all()):
            raise InputError(
                f"{name} holds infinite weights: repair the checkpoint, or leave the tensor out with --exclude."
            )


def check_held_out(model: nn.Module, records: Records) -> None:
    """Tensors to evaluate on: the model takes them, and puts out no NaN for those that hold NaN or infinity.

    Raises:
        InputError: it does not, or it does.
    """
    if records.kind != "tensors":
        return
    first = records.subset(range(min(2, len(records)))).inputs
    with evaluating(model), explaining_errors(first, "evaluation"):
        call(model, first)
    odd = torch.zeros(len(records), dtype=torch.bool)
    for tensor in tensor_items(records.inputs).values():
        if tensor.is_floating_point():
            odd |= ~torch.isfinite(tensor).reshape(len(records), -1).all(1).cpu()
    if not odd.any():
        return
    with evaluating(model):
        logits = logits_of(call(model, records.subset(odd.nonzero().reshape(-1)[:FEW].tolist()).inputs))
    if not bool(torch.isfinite(logits).all()):  # a model may know what to do with NaN
        raise InputError(
            f"{records.name}: {int(odd.sum()):,} of {len(records):,} records to evaluate on hold NaN or infinity, and so do the "
            "model's answers: remove those records, or fill them in."
        )
