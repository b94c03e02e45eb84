"""Lottery tickets: the sparse model found in one training run, and what it is measured by."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

_HOME = {
    "find_ticket": "verb",
    "Found": "verb",
    "Ticket": "search",
    "Training": "training",
    "METHODS": "methods",
    "training_from": "from_data",
    "training_from_trainer": "from_trainer",
    "clip_image_classifier": "clip",
    "with_head": "heads",
    "instant_model_soup": "ims",
    "ModelSoup": "ims",
}
__all__ = [
    "METHODS",
    "Found",
    "ModelSoup",
    "Ticket",
    "Training",
    "clip_image_classifier",
    "find_ticket",
    "instant_model_soup",
    "training_from",
    "training_from_trainer",
    "with_head",
]

if TYPE_CHECKING:
    from winnow.tickets.clip import clip_image_classifier as clip_image_classifier
    from winnow.tickets.from_data import training_from as training_from
    from winnow.tickets.from_trainer import training_from_trainer as training_from_trainer
    from winnow.tickets.heads import with_head as with_head
    from winnow.tickets.ims import ModelSoup as ModelSoup
    from winnow.tickets.ims import instant_model_soup as instant_model_soup
    from winnow.tickets.methods import METHODS as METHODS
    from winnow.tickets.search import Ticket as Ticket
    from winnow.tickets.training import Training as Training
    from winnow.tickets.verb import Found as Found
    from winnow.tickets.verb import find_ticket as find_ticket


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'winnow.tickets' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"winnow.tickets.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
