"""The space of a hyperparameter search: which keys are varied, over which values. Pure; who draws from it is not here.

optimization.lr: {loguniform: [1.0e-5, 1.0e-3]}
model.name: {choice: [vit_tiny, vit_small]}
mask: {min_keep: {randint: [8, 32]}}            # nested keys mean the same as dotted ones; 32 is left out
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
    """One varied key. `values`: the choices in order; or the ends of a range (of `randint` the upper one is left out),
    and for `quniform` the step."""

    key: str
    kind: str
    values: tuple[Any, ...]

    @property
    def categorical(self) -> bool:
        return self.kind in LISTS

    @property
    def probes(self) -> tuple[Any, ...]:
        """Values that stand for all: every choice, both ends of a range."""
        if self.categorical:
            return self.values
        low, high = self.values[:2]
        return (low, high - 1) if self.kind == "randint" else (low, high)

    def nearest(self, value: Any) -> Any:
        """The value of the dimension that is nearest: a mutation may leave the range, or the grid of its steps."""
        if self.categorical:
            return value
        low, high = self.probes
        if self.kind == "quniform":
            value = round(value / self.values[2]) * self.values[2]
        value = min(max(float(value), low), high)
        return round(value) if self.kind == "randint" else value


def parse_space(raw: Mapping[str, Any]) -> dict[str, Dimension]:
    """Dimensions by dotted key, in the order given. UserError naming the key for what is no search space."""
    space = {dimension.key: dimension for dimension in _dimensions(raw, "")}
    if not space:
        raise UserError("nothing is varied", key="space", found=dict(raw), expected=f"KEY: {EXAMPLES}")
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
            raise UserError("not a search space", key=f"space.{key}", found=node, expected=expected)
    return found


def _dimension(key: str, kind: str, values: Any) -> Dimension:
    where = f"space.{key}.{kind}"
    if not isinstance(values, Sequence) or isinstance(values, str):
        raise UserError("a list is wanted", key=where, found=values, expected=EXAMPLES)
    if kind in LISTS:
        _check_choices(where, values)
    else:
        _check_range(where, kind, values)
    return Dimension(key, kind, tuple(values))


def _check_choices(where: str, values: Sequence[Any]) -> None:
    if not values:
        raise UserError("no choice is given", key=where, found=[], expected="at least one value")
    if any(value in values[:i] for i, value in enumerate(values)):
        raise UserError("a choice is given twice", key=where, found=list(values), expected="each once")


def _check_range(where: str, kind: str, values: Sequence[Any]) -> None:
    numbers = (int,) if kind == "randint" else (int, float)
    wanted = "[low, high, step]" if kind == "quniform" else "[low, high]"
    right = all(isinstance(v, numbers) and not isinstance(v, bool) and math.isfinite(v) for v in values)
    if not right or len(values) != wanted.count(",") + 1:
        what = "whole numbers" if kind == "randint" else "numbers"
        raise UserError("not a range", key=where, found=list(values), expected=f"{wanted}, {what}")
    if values[0] >= values[1]:
        raise UserError("a range is empty", key=where, found=list(values), expected="low < high")
    if kind == "loguniform" and values[0] <= 0:
        raise UserError("a logarithm needs values above 0", key=where, found=values[0], expected="low > 0")
    if kind == "quniform" and values[2] <= 0:
        raise UserError("a step is above 0", key=where, found=values[2], expected="step > 0")


def word(key: str, value: Any) -> str:
    """`key=value` as one would type it, in a form that is read back as the same value.

    >>> word("optimization.lr", 1e-05), word("model.name", "vit_tiny"), word("tag", "1e3")
    ('optimization.lr=1e-05', 'model.name=vit_tiny', 'tag="1e3"')
    """
    return f"{key}={value}" if isinstance(value, str) and _plain(value) else f"{key}={json.dumps(value)}"


def _plain(text: str) -> bool:
    """Whether YAML reads the bare text as itself; OmegaConf takes more for numbers than YAML does."""
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
