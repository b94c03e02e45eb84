"""The model and its data put together before any work: does the one take the other, and what is its output?"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from torch import nn

from winnow.compression.hosts import Host, Loaded
from winnow.errors import InputError
from winnow.forward.batch import call, first_example
from winnow.masks.outputs import output_weights
from winnow.masks.scope import declares_outputs
from winnow.masks.unwrap import on_meta
from winnow.measure.fits import check_length
from winnow.measure.prepare import Prepared, try_model
from winnow.models.source import ModelSource


def with_data(host: Host, prepared: Prepared) -> Host:
    """The host, once its model has taken the first batches; held in its stored types where it runs in no others.

    A streamed model is only looked at: a forward would read all of it.

    Raises:
        InputError: the model does not take the data; see :func:`winnow.measure.prepare.try_model`.
    """
    config = host.source.config
    if host.streamed:
        check_length(host.model, config, prepared.length)
        return host
    try:
        try_model(prepared, host.model, config)
        return host
    except InputError:
        if not host.widened:
            raise
        with suppress(InputError):  # a forward that casts its input itself, say
            plain = Loaded(host.source)
            try_model(prepared, plain.model, config)
            return plain
        raise


def outputs_of(source: ModelSource, model: nn.Module, prepared: Prepared) -> list[str] | None:
    """Names of the output layers' weights; None where nothing shows them.

    A folder is judged by its class alone, on tensors without values, so that the scope is the same whether the model is
    loaded or streamed, with data or without. Of other models one example of the data tells.
    """
    if declares_outputs(model):
        return None
    if source.kind == "folder":
        return _of_class(model)
    run = _first_run(model, prepared)
    return None if run is None else output_weights(model, run)


def _of_class(model: nn.Module) -> list[str] | None:
    from winnow.coupled.call import forward
    from winnow.shrinking.example import make_example

    with suppress(Exception):  # a forward that looks at values, say
        twin = on_meta(model)
        example = make_example(twin)
        return output_weights(twin, lambda: forward(twin, example))
    return None


def _first_run(model: nn.Module, prepared: Prepared) -> Callable[[], Any] | None:
    if prepared.batches:
        batch = first_example(prepared.batches[0])
        return lambda: call(model, prepared.batches[0] if batch is None else batch)
    task = prepared.task
    return None if task is None else lambda: task.evaluate(model)
