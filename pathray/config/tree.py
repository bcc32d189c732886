"""The typed tree into which config layers are merged leaf by leaf, so that every error names its key and layer.

OmegaConf holds the values, converts types and resolves `${…}`. Not here: the layers and their order.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from pathray.config.files import first_line
from pathray.config.schema import (
    NoSuchKey,
    Part,
    allows_none,
    is_section,
    join_key,
    nearest_key,
    split_key,
    type_at,
    type_text,
    without_none,
)
from pathray.config.text import Written, to_declared_type, with_texts
from pathray.errors import UserError

COMMAND_LINE = "command line"


class ConfigTree:
    """The tree of a schema. `aliases` map the first part of a key to another key (a group's name to its mount)."""

    def __init__(self, schema: type[Any], aliases: Mapping[str, str]) -> None:
        self.schema, self.aliases = schema, aliases
        self.config = OmegaConf.structured(schema)
        self.origin: dict[str, str] = {}
        self.interpolated: list[list[Part]] = []
        _unlock(self.config)

    def lay(self, content: Mapping[str, Any], source: str, at: str = "") -> list[str]:
        """Merge a whole layer, whose keys are relative to `at`. Returns a description of each value it replaced."""
        before = {key: (self._value(key), layer) for key, layer in self.origin.items()}
        for key, value in content.items():
            parts = [*split_key(at), *split_key(str(key))] if at else self._address(str(key))
            self._set(parts, value, source)
        now = {key: self._value(key) for key in before if self.origin.get(key) == source}
        return [f"{key}={old} of {layer}" for key, (old, layer) in before.items() if key in now and now[key] != old]

    def lay_text(self, key: str, text: str) -> None:
        """Merge one `key=value` of the command line; the text is YAML, unless the schema expects a string."""
        parts = self._address(key)
        hint = self._type(parts, COMMAND_LINE)
        try:
            value = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]), resolve=False)
            assert isinstance(value, dict)
            parsed = value["value"]
            if isinstance(parsed, list | dict):
                parsed = with_texts(parsed, text)
        except (YAMLError, OmegaConfBaseException, ValueError, RecursionError) as e:
            raise UserError(f"invalid value: {first_line(e)}", file=COMMAND_LINE, key=key, found=text[:200]) from e
        if without_none(hint) is str and parsed is not None and not isinstance(parsed, str | list | dict):
            parsed = text  # 007 and 1e3 stay as typed
        self._set(parts, parsed, COMMAND_LINE)

    def finish(self) -> Any:
        """The resolved config as an object of the schema; runs every `__post_init__`."""
        try:
            for parts in self.interpolated:  # first those given in layers, so that an error names the given key
                self._node(parts)
            unset = sorted(OmegaConf.missing_keys(self.config))
            if unset:
                raise UserError("a required key is not set", key=", ".join(unset), expected=f"{unset[0]}=…")
            OmegaConf.resolve(self.config)
            return OmegaConf.to_object(self.config)
        except OmegaConfBaseException as e:
            key = str(e.full_key or "")
            raise UserError(first_line(e), file=self.origin.get(key), key=key or None) from e

    def _address(self, key: str) -> list[Part]:
        first, *rest = split_key(key) or [""]
        mount = self.aliases.get(str(first))
        return [first, *rest] if mount is None else [*split_key(mount), *rest]

    def _type(self, parts: list[Part], source: str) -> Any:
        try:
            return type_at(self.schema, parts)
        except NoSuchKey as e:
            key, meant = join_key(parts), nearest_key(self.schema, parts, tuple(self.aliases))
            raise UserError("unknown key", file=source, key=key, expected=meant) from e

    def _item(self, parts: list[Part]) -> Any:
        """The type of a list's items; None if the key is not a list."""
        try:
            return without_none(type_at(self.schema, [*parts, 0]))
        except NoSuchKey:
            return None

    def _set(self, parts: list[Part], value: Any, source: str) -> None:
        hint = self._type(parts, source)
        if isinstance(value, Written):
            value = value.text if self._item(parts) is str else to_declared_type(value, hint)
        if isinstance(value, Mapping) and (is_section(hint) or _is_mapping(hint)):
            self._open(parts, source)
            for name, inner in value.items():
                below: list[Part] = [str(name)] if _is_mapping(hint) else split_key(str(name))
                self._set([*parts, *below], inner, source)
        elif isinstance(value, list) and value and is_section(item := self._item(parts)):
            self._open(parts[:-1], source)
            self._assign(parts, [OmegaConf.structured(item) for _ in value], source)
            for i, inner in enumerate(value):
                self._set([*parts, i], inner, source)
        elif not (value is None and is_section(hint) and not allows_none(hint)):  # `data:` with nothing below it
            self._open(parts[:-1], source)
            value = to_declared_type(value, hint)
            if isinstance(value, str) and value and "${" not in value and self._item(parts) is str:
                value = [value]  # encoders=FOLDER is a list of one
            self._assign(parts, value, source)

    def _open(self, parts: list[Part], source: str) -> None:
        """Create the sections above a key; optional sections get their defaults."""
        node: Any = self.config
        for depth, part in enumerate(parts):
            if isinstance(node, ListConfig):
                self._check_index(node, parts[: depth + 1], source)
            if isinstance(node, DictConfig) and node.get(part) is None:
                self._assign(parts[: depth + 1], {}, source)
            node = node[part]

    def _assign(self, parts: list[Part], value: Any, source: str) -> None:
        key, node = join_key(parts), self._node(parts[:-1])
        if isinstance(node, ListConfig):
            self._check_index(node, parts, source)
        try:
            if isinstance(node, ListConfig):
                OmegaConf.update(node, f"[{parts[-1]}]", value, merge=False)
            else:
                node.merge_with({parts[-1]: value})
        except (OmegaConfBaseException, TypeError, AttributeError) as e:
            expected = type_text(self._type(parts, source))
            message = "the key has no value" if value is None else "wrong type"
            raise UserError(message, file=source, key=key, found=value, expected=expected) from e
        self.origin[key] = source
        if isinstance(value, str) and "${" in value:
            self.interpolated.append(parts)
        _unlock(self._node(parts[:-1]))

    def _node(self, parts: list[Part]) -> Any:
        node: Any = self.config
        for part in parts:
            node = node[part]
        return node

    def _value(self, key: str) -> Any:
        return OmegaConf.select(self.config, key, throw_on_resolution_failure=False)

    def _check_index(self, node: ListConfig, parts: list[Part], source: str) -> None:
        if not isinstance(parts[-1], int) or parts[-1] >= len(node):
            expected = f"an index below {len(node)}, or the whole list {join_key(parts[:-1])}=[…]"
            raise UserError("no such list item", file=source, key=join_key(parts), expected=expected)


def _is_mapping(hint: Any) -> bool:
    hint = without_none(hint)
    return hint is dict or getattr(hint, "__origin__", None) is dict


def _unlock(node: Any) -> None:
    """Make nodes writable: frozen dataclasses create read-only nodes, which layers must change."""
    if isinstance(node, DictConfig | ListConfig) and not node._is_none() and not node._is_interpolation():
        OmegaConf.set_readonly(node, None)
        keys = range(len(node)) if isinstance(node, ListConfig) else list(node.keys())
        for key in keys:
            _unlock(node._get_node(key))  # type: ignore[arg-type]
