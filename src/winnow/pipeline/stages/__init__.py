"""The kinds of stages of a recipe. A new one is its file here, named after it, and its class in :data:`KINDS`."""

from __future__ import annotations

from winnow.pipeline.stage import Stage
from winnow.pipeline.stages.compress import Compress
from winnow.pipeline.stages.eval import Evaluate
from winnow.pipeline.stages.ticket import Ticket
from winnow.pipeline.stages.train import Train

# By name in a recipe. Stages that make a model follow this order there.
KINDS: dict[str, type[Stage]] = {stage.kind: stage for stage in (Train, Ticket, Compress, Evaluate)}
ORDER = [kind for kind, stage in KINDS.items() if stage.makes]
