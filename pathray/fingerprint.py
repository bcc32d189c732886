"""Splits a config into identity (must match on resume) and placement (may change), and fingerprints each.

A field made with `placement(...)` is placement, with everything below it. All other fields are identity. One made with
`added_field(...)` was added after runs had been saved: at its default it is left out of the fingerprint, so that those
runs can be resumed. Not here: how configs are loaded (pathray.config.load).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from typing import Any

ABSENT = "(absent)"


def placement(
    default: Any = dataclasses.MISSING, *, default_factory: Callable[[], Any] | Any = dataclasses.MISSING
) -> Any:
    """A dataclass field that may change on resume: paths, threads, logging, the number of workers."""
    return dataclasses.field(default=default, default_factory=default_factory, metadata={"placement": True})


def added_field(default: Any, *, of: str = "") -> Any:
    """An identity field that older runs do not have. At its default it is left out of the fingerprint, because older
    runs used that value. A setting `of` such a field is left out exactly while that field is."""
    return dataclasses.field(default=default, metadata={"added": True, "of": of})


def flatten(config: Any) -> dict[str, tuple[Any, bool]]:
    """`{"data.plugins[0].seed": (value, is_placement)}` for every leaf of a dataclass instance, in declared order."""
    return dict(_leaves(config, "", False))


def fingerprint(config: Any, *, placement: bool = False) -> dict[str, Any]:
    """`{"hash": sha256 of the canonical JSON of values, "values": {dotted key: plain value}}`.

    Covers identity fields, or placement fields with `placement`, but not those that `added_field` leaves out. It does
    not depend on field order, the process, or tuple versus list; 1 and 1.0 are equal. `config` is a dataclass instance
    or a plain mapping.
    """
    leaves = _leaves(config, "", False, leave_out=True)
    values = {key: value for key, (value, is_placement) in leaves if is_placement == placement}
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return {"hash": hashlib.sha256(text.encode()).hexdigest(), "values": values}


def list_differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """(key, old, new) for every key that differs between two fingerprints (or two flat dicts), sorted by key.

    A key that exists on one side only has the value `ABSENT` on the other.
    """
    old, new = _values(a), _values(b)
    keys = sorted(old.keys() | new.keys())
    rows = [(key, old.get(key, ABSENT), new.get(key, ABSENT)) for key in keys]
    return [row for row in rows if row[1] != row[2]]


def _values(x: Mapping[str, Any]) -> Mapping[str, Any]:
    return x["values"] if isinstance(x.get("values"), Mapping) else x


def _leaves(node: Any, key: str, is_placement: bool, leave_out: bool = False) -> Iterator[tuple[str, tuple[Any, bool]]]:
    if dataclasses.is_dataclass(node) and not isinstance(node, type):
        for f in dataclasses.fields(node):
            if leave_out and _is_left_out(node, f):
                continue
            inner = is_placement or bool(f.metadata.get("placement"))
            yield from _leaves(getattr(node, f.name), f"{key}.{f.name}" if key else f.name, inner, leave_out)
    elif isinstance(node, Mapping) and node:
        for name in node:
            yield from _leaves(node[name], f"{key}.{name}" if key else str(name), is_placement, leave_out)
    elif isinstance(node, list | tuple) and any(_is_tree(x) for x in node):
        for i, item in enumerate(node):
            yield from _leaves(item, f"{key}[{i}]", is_placement, leave_out)
    else:
        yield key, (_plain(node, key), is_placement)


def _is_left_out(node: Any, field: dataclasses.Field[Any]) -> bool:
    if not field.metadata.get("added"):
        return False
    decides = next((f for f in dataclasses.fields(node) if f.name == field.metadata["of"]), field)
    return bool(getattr(node, decides.name) == decides.default)


def _is_tree(node: Any) -> bool:
    return dataclasses.is_dataclass(node) or isinstance(node, Mapping | list | tuple)


def _plain(value: Any, key: str) -> Any:
    """The value ready for JSON. Floats with an integer value become integers, so that equal values compare equal."""
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, list | tuple):
        return [_plain(x, key) for x in value]
    if isinstance(value, Mapping):
        return {}
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    assert value is None or isinstance(value, bool | int | float | str), f"{key}: {type(value)} has no fingerprint"
    return value
