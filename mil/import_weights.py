"""Weights of other programs into a slide model, by the names of their parameters. Read and applied here, never fetched.

A table per source (mil.weight_names) says which name becomes which; what it does not name is reported. Not here:
reading files of this project's runs (checkpoints and artifacts, pathray.store).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mil.aggregators import Aggregator
from mil.model import SlideModel
from mil.weight_names import SOURCES, Rule
from pathray.errors import UserError

log = logging.getLogger(__name__)

CONTAINERS = ("state_dict", "model_state_dict", "model", "aggregator")
WRAPPERS = re.compile(r"^(?:module|_orig_mod|model|encoder|aggregator|online_network|student|backbone)\.")


@dataclass(frozen=True)
class Imported:
    """What became of the weights: the source's name, the number of the model's tensors that were loaded, names of the
    model's that were not, and names of the file's that nothing took."""

    source: str
    loaded: int
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()


@dataclass
class _Match:
    tensors: dict[str, Tensor] = field(default_factory=dict)
    taken: dict[str, str] = field(default_factory=dict)  # name in the file → name in the model


def import_weights(
    model: SlideModel | Aggregator, name: str, state: Mapping[str, Any], *, source: str | None = None, head: bool = True
) -> Imported:
    """Load `state` into `model`, whose aggregator is registered as `name`; `head=False` keeps the model's head.

    Without `source`, the table (or the model's own names) that fits most tensors is taken. UserError if none is loaded,
    naming the file's first names, and for a shape that differs, naming both.
    """
    whole = model if isinstance(model, SlideModel) else SlideModel(model)
    given = _tensors(state)
    if source is not None and source not in SOURCES and source != "pathray":
        expected = ", ".join(["pathray", *SOURCES])
        raise UserError("unknown source of weights", key="source", found=source, expected=expected)
    everything = whole.state_dict()
    own = {key: value for key, value in everything.items() if head or not key.startswith("head.")}
    candidates = {"pathray": _by_own_names(given, own)}
    candidates |= {key: _by_rules(given, tables[name]) for key, tables in SOURCES.items() if name in tables}
    if source is not None:
        candidates = {source: candidates.get(source, _Match())}
    best = max(candidates, key=lambda key: len(candidates[key].tensors.keys() & own.keys()))
    found = {key: value for key, value in candidates[best].tensors.items() if key in own}
    if not found:
        first = ", ".join(list(given)[:3])
        raise UserError(
            f"no weights for {name}", key="aggregator_weights_path", found=first, expected=f"like {next(iter(own))}"
        )
    for key, value in found.items():
        if value.shape != own[key].shape:
            shapes = list(value.shape), list(own[key].shape)
            raise UserError(f"weights of another shape from {best}", key=key, found=shapes[0], expected=shapes[1])
    whole.load_state_dict(found, strict=False)
    unexpected = tuple(key for key in given if candidates[best].taken.get(key) not in everything)
    report = Imported(best, len(found), tuple(key for key in own if key not in found), unexpected)
    log.info("%d tensors of %s loaded; missing: %s; unexpected: %s", report.loaded, best, report.missing, unexpected)
    return report


def _tensors(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors by name, out of the container that frameworks put around them."""
    for key in CONTAINERS:
        inner = state.get(key)
        if isinstance(inner, Mapping):
            return _tensors(inner)
    return {key: value for key, value in state.items() if isinstance(value, Tensor)}


def _by_own_names(given: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> _Match:
    match = _Match()
    for key, value in given.items():
        for candidate in (key, _bare(key), f"aggregator.{_bare(key)}"):
            if candidate in own:
                match.tensors[candidate] = value
                match.taken[key] = candidate
                break
    return match


def _by_rules(given: Mapping[str, Tensor], rules: list[Rule]) -> _Match:
    match, parts = _Match(), dict[str, dict[int, Tensor]]()
    for rule in rules:
        hits = {key: hit for key in given if (hit := re.fullmatch(rule.pattern, _bare(key)))}
        numbers = sorted({int(hit[1]) for hit in hits.values() if hit.re.groups and hit[1].isdigit()})
        for key, hit in hits.items():
            groups = hit.groups()
            rank = numbers.index(int(groups[0])) if groups and groups[0].isdigit() else 0
            last = groups[-1] if groups else ""
            target = rule.target.replace("{-1}", last).replace("{rank}", str(rank))
            target = target.replace("{0}", groups[0] if groups else "")
            third = given[key].shape[0] // 3
            value = given[key] if rule.thirds == (0, 3) else given[key][rule.thirds[0] * third : rule.thirds[1] * third]
            parts.setdefault(target, {})[rule.part] = value
            match.taken[key] = target
    for target, blocks in parts.items():
        ordered = [blocks[i] for i in sorted(blocks)]
        match.tensors[target] = ordered[0] if len(ordered) == 1 else torch.cat(ordered)
    return match


def _bare(key: str) -> str:
    while (stripped := WRAPPERS.sub("", key)) != key:
        key = stripped
    return key
