"""Lottery tickets: the sparse model found in one training run, and what it is measured by."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

_HOME = {
    "find_ticket": "winnow.tickets.verb",
    "Found": "winnow.tickets.verb",
    "Ticket": "winnow.tickets.search",
    "Training": "winnow.train.task.training",
    "METHODS": "winnow.tickets.methods.registry",
    "training_from": "winnow.train.task.from_data",
    "training_from_trainer": "winnow.train.task.from_trainer",
    "clip_image_classifier": "winnow.train.task.clip",
    "with_head": "winnow.train.task.starting_model",
    "instant_model_soup": "winnow.tickets.methods.ims",
    "ModelSoup": "winnow.tickets.methods.ims",
    "sign_ablation": "winnow.tickets.signs.verb",
}
__all__ = sorted(_HOME)

if TYPE_CHECKING:
    from winnow.tickets.methods.ims import ModelSoup as ModelSoup
    from winnow.tickets.methods.ims import instant_model_soup as instant_model_soup
    from winnow.tickets.methods.registry import METHODS as METHODS
    from winnow.tickets.search import Ticket as Ticket
    from winnow.tickets.signs.verb import sign_ablation as sign_ablation
    from winnow.tickets.verb import Found as Found
    from winnow.tickets.verb import find_ticket as find_ticket
    from winnow.train.task.clip import clip_image_classifier as clip_image_classifier
    from winnow.train.task.from_data import training_from as training_from
    from winnow.train.task.from_trainer import training_from_trainer as training_from_trainer
    from winnow.train.task.starting_model import with_head as with_head
    from winnow.train.task.training import Training as Training


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'winnow.tickets' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
