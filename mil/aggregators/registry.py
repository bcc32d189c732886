"""The aggregators by name. Importing `mil.aggregators` fills the registry. Not here: what an aggregator is (base)."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from difflib import get_close_matches
from typing import Any, TypeVar

from mil.aggregators.base import Aggregator
from pathray.errors import UserError

A = TypeVar("A", bound=type[Aggregator])
_REGISTRY: dict[str, type[Aggregator]] = {}


def register_aggregator(name: str) -> Callable[[A], A]:
    """A decorator that makes a class available as `name`."""

    def register(cls: A) -> A:
        assert name not in _REGISTRY, f"two aggregators are named {name}"
        _REGISTRY[name] = cls
        return cls

    return register


def aggregator_names() -> tuple[str, ...]:
    return tuple(sorted(_REGISTRY))


def build_aggregator(name: str, in_dim: int, **arguments: Any) -> Aggregator:
    """The aggregator `name` for features of `in_dim` dimensions, with torch's generator as it is.

    UserError for an unknown name or argument, with the nearest right one.
    """
    if name not in _REGISTRY:
        raise _unknown("aggregator", "model.name", name, aggregator_names())
    known = aggregator_arguments(name)
    for argument in arguments:
        if argument not in known:
            raise _unknown(f"argument of {name}", f"model.{argument}", argument, tuple(known))
    return _REGISTRY[name](in_dim, **arguments)


def aggregator_arguments(name: str) -> dict[str, Any]:
    """The arguments of an aggregator besides `in_dim`, with their defaults."""
    parameters = inspect.signature(_REGISTRY[name]).parameters
    return {key: p.default for key, p in parameters.items() if key != "in_dim"}


def _unknown(what: str, key: str, found: str, known: tuple[str, ...]) -> UserError:
    near = get_close_matches(found, known, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return UserError(f"unknown {what}{hint}", key=key, found=found, expected=f"one of {', '.join(known)}")
