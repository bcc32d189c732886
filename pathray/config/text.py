"""Keeps the text of YAML scalars: YAML changes `1e3`, `007`, `12:30` and `no`, which is wrong for a text key.

Every scalar that YAML does not parse as text is kept together with its text. The schema decides which of the two is
used (pathray.config.tree). Not here: the schema.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args, get_origin

import yaml

from pathray.config.schema import without_none


@dataclass(frozen=True)
class Written:
    """A number or boolean with its original text."""

    value: Any
    text: str


class _Texts(yaml.SafeLoader):  # type: ignore[misc]
    """Loads every plain scalar as text; merges (``<<``) work as in YAML."""

    yaml_implicit_resolvers = {
        mark: [(tag, rule) for tag, rule in rules if tag == "tag:yaml.org,2002:merge"]
        for mark, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def with_texts(content: Any, source: str) -> Any:
    """`content`, parsed from the YAML text `source`, with its numbers and booleans as `Written`.

    Keys of maps also become their original texts.
    """
    return _pair_with_text(content, yaml.load(source, Loader=_Texts))


def _pair_with_text(content: Any, raw: Any) -> Any:
    if isinstance(content, Mapping):
        if isinstance(raw, Mapping) and len(raw) == len(content):
            return {key: _pair_with_text(value, raw[key]) for key, value in zip(raw, content.values(), strict=True)}
        known = raw if isinstance(raw, Mapping) else {}
        return {str(key): _pair_with_text(value, known.get(str(key))) for key, value in content.items()}
    if isinstance(content, list):
        texts = raw if isinstance(raw, list) and len(raw) == len(content) else [None] * len(content)
        return [_pair_with_text(value, text) for value, text in zip(content, texts, strict=True)]
    if content is None or isinstance(content, str) or not isinstance(raw, str):
        return content
    return Written(content, raw)


def to_declared_type(value: Any, hint: Any) -> Any:
    """`value` without `Written`: its text if the declared type `hint` is a string, else the value parsed by YAML."""
    hint = without_none(hint)
    if isinstance(value, Written):
        return value.text if hint is str else value.value
    origin, args = get_origin(hint), get_args(hint)
    if isinstance(value, list):
        return [to_declared_type(item, _item_type(origin, args, i)) for i, item in enumerate(value)]
    if isinstance(value, Mapping):
        inner = args[1] if origin is dict else Any
        return {key: to_declared_type(item, inner) for key, item in value.items()}
    return value


def _item_type(origin: Any, args: tuple[Any, ...], i: int) -> Any:
    if origin not in (list, tuple) or not args:
        return Any
    return args[0 if args[-1] is Ellipsis else min(i, len(args) - 1)]
