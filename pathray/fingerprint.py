"""Splits a config into identity (must match on resume) and placement (may change), and fingerprints each.

A field made with `placement(...)` is placement, with everything below it. All other fields are identity. One made with
`added_field(...)` came after runs were written: at its default it is left out, so that those runs can be resumed. Not
here: how configs are loaded (pathray.config.load).
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


def added_field(default: Any) -> Any:
    """An identity field that older runs do not have. At `default`, with which they ran, it has no fingerprint."""
    return dataclasses.field(default=default, metadata={"added": True})


def flatten(config: Any) -> dict[str, tuple[Any, bool]]:
    """`{"data.plugins[0].seed": (value, is_placement)}` for every leaf of a dataclass instance, in declared order;
    without fields made with `added_field` that have their default."""
    return dict(_leaves(config, "", False))


def fingerprint(config: Any, *, placement: bool = False) -> dict[str, Any]:
    """`{"hash": sha256 of the canonical JSON of values, "values": {dotted key: plain value}}`.

    Covers identity fields, or placement fields with `placement`. It does not depend on field order, the process, or
    tuple versus list; 1 and 1.0 are equal. `config` is a dataclass instance or a plain mapping.
    """
    values = {key: value for key, (value, is_placement) in flatten(config).items() if is_placement == placement}
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


def _leaves(node: Any, key: str, is_placement: bool) -> Iterator[tuple[str, tuple[Any, bool]]]:
    if dataclasses.is_dataclass(node) and not isinstance(node, type):
        for f in dataclasses.fields(node):
            if f.metadata.get("added") and getattr(node, f.name) == f.default:
                continue
            inner = is_placement or bool(f.metadata.get("placement"))
            yield from _leaves(getattr(node, f.name), f"{key}.{f.name}" if key else f.name, inner)
    elif isinstance(node, Mapping) and node:
        for name in node:
            yield from _leaves(node[name], f"{key}.{name}" if key else str(name), is_placement)
    elif isinstance(node, list | tuple) and any(_is_tree(x) for x in node):
        for i, item in enumerate(node):
            yield from _leaves(item, f"{key}[{i}]", is_placement)
    else:
        yield key, (_plain(node, key), is_placement)


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
