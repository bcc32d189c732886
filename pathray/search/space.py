"""The space of a hyperparameter search: the varied keys and their values. Not here: sampling.

optimization.lr: {loguniform: [1.0e-5, 1.0e-3]}
model.name: {choice: [vit_tiny, vit_small]}
mask: {min_keep: {randint: [8, 32]}}            # nested keys equal dotted ones; 32 is excluded
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from pathray.errors import UserError

LISTS = ("choice", "grid")
RANGES = ("uniform", "loguniform", "randint", "quniform")
KINDS = (*LISTS, *RANGES)
EXAMPLES = "{loguniform: [1e-5, 1e-3]}, {uniform: [0, 0.5]}, {randint: [1, 9]}, {choice: [a, b]} or {grid: [1, 2]}"


@dataclass(frozen=True)
class Dimension:
    """One varied key. `values` are the choices in order, or the ends of a range (the upper one is excluded for
    `randint`), with the step for `quniform`."""

    key: str
    kind: str
    values: tuple[Any, ...]

    @property
    def categorical(self) -> bool:
        return self.kind in LISTS

    @property
    def probes(self) -> tuple[Any, ...]:
        """Representative values: every choice, or both ends of a range."""
        if self.categorical:
            return self.values
        low, high = self.values[:2]
        return (low, high - 1) if self.kind == "randint" else (low, high)

    def nearest(self, value: Any) -> Any:
        """The nearest valid value, since a mutation may leave the range or the grid of steps."""
        if self.categorical:
            return value
        low, high = self.probes
        if self.kind == "quniform":
            value = round(value / self.values[2]) * self.values[2]
        value = min(max(float(value), low), high)
        return round(value) if self.kind == "randint" else value


def parse_space(raw: Mapping[str, Any]) -> dict[str, Dimension]:
    """Dimensions by dotted key, in the given order. UserError naming the key for an invalid search space."""
    space = {dimension.key: dimension for dimension in _dimensions(raw, "")}
    if not space:
        raise UserError("the search space is empty", key="space", found=dict(raw), expected=f"KEY: {EXAMPLES}")
    return space


def _dimensions(raw: Mapping[str, Any], prefix: str) -> list[Dimension]:
    found = []
    for name, node in raw.items():
        key = f"{prefix}{name}"
        if isinstance(node, Mapping) and len(node) == 1 and next(iter(node)) in KINDS:
            ((kind, values),) = node.items()
            found.append(_dimension(key, str(kind), values))
        elif isinstance(node, Mapping) and node:
            found += _dimensions(node, f"{key}.")
        else:
            near = difflib.get_close_matches(str(name), KINDS, 1)
            expected = f"{near[0]}" if near else EXAMPLES
            raise UserError("invalid search space", key=f"space.{key}", found=node, expected=expected)
    return found


def _dimension(key: str, kind: str, values: Any) -> Dimension:
    where = f"space.{key}.{kind}"
    if not isinstance(values, Sequence) or isinstance(values, str):
        raise UserError("values must be a list", key=where, found=values, expected=EXAMPLES)
    if kind in LISTS:
        _check_choices(where, values)
    else:
        _check_range(where, kind, values)
    return Dimension(key, kind, tuple(values))


def _check_choices(where: str, values: Sequence[Any]) -> None:
    if not values:
        raise UserError("the list of choices is empty", key=where, found=[], expected="at least one value")
    if any(value in values[:i] for i, value in enumerate(values)):
        raise UserError("duplicate choice", key=where, found=list(values), expected="each value once")


def _check_range(where: str, kind: str, values: Sequence[Any]) -> None:
    numbers = (int,) if kind == "randint" else (int, float)
    wanted = "[low, high, step]" if kind == "quniform" else "[low, high]"
    right = all(isinstance(v, numbers) and not isinstance(v, bool) and math.isfinite(v) for v in values)
    if not right or len(values) != wanted.count(",") + 1:
        what = "whole numbers" if kind == "randint" else "numbers"
        raise UserError("invalid range", key=where, found=list(values), expected=f"{wanted}, {what}")
    if values[0] >= values[1]:
        raise UserError("the range is empty", key=where, found=list(values), expected="low < high")
    if kind == "loguniform" and values[0] <= 0:
        raise UserError("a loguniform range must be > 0", key=where, found=values[0], expected="low > 0")
    if kind == "quniform" and values[2] <= 0:
        raise UserError("the step must be > 0", key=where, found=values[2], expected="step > 0")


def word(key: str, value: Any) -> str:
    """`key=value` as typed on a command line, so that it parses back to the same value.

    >>> word("optimization.lr", 1e-05), word("model.name", "vit_tiny"), word("tag", "1e3")
    ('optimization.lr=1e-05', 'model.name=vit_tiny', 'tag="1e3"')
    """
    return f"{key}={value}" if isinstance(value, str) and _plain(value) else f"{key}={json.dumps(value)}"


def _plain(text: str) -> bool:
    """Whether YAML parses the bare text as the same text; OmegaConf accepts more numbers than YAML."""
    try:
        return not _is_number(text) and bool(yaml.safe_load(text) == text)
    except yaml.YAMLError:
        return False


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
