"""Reads a YAML config file. Depth, aliases and type are checked before the content is built, which may be costly.

Not here: the meaning of keys (pathray.config.tree), finding files (pathray.config.load).
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pathray.config.text import with_texts
from pathray.errors import UserError
from pathray.files.text import read_user_text

MAX_DEPTH, MAX_REPEATED = 50, 10_000  # at most this many values may be repeated by aliases
KINDS = {yaml.SequenceStartEvent: "a list", yaml.ScalarEvent: "a single value", yaml.AliasEvent: "an alias"}


def read_config_file(path: Path) -> dict[str, Any]:
    """The keys of a YAML file; numbers and booleans keep their text (pathray.config.text). UserError, naming the line,
    if the file is not YAML, not a mapping, empty, nested too deeply, or too large through aliases."""
    text = read_user_text(str(path), "config file", "YAML in UTF-8")
    try:
        _check_events(path, text)
        loaded = OmegaConf.load(io.StringIO(text), max_yaml_expanded_nodes=None)  # a list of genes is long
        content = OmegaConf.to_container(loaded, resolve=False)
        content = with_texts(content, text)
    except yaml.MarkedYAMLError as e:
        mark = e.problem_mark or e.context_mark
        hint = ": indent with spaces, not tabs" if _begins_with_tab(text, mark) else ""
        raise UserError(f"invalid YAML: {e.problem}{hint}", file=path, row=mark and mark.line + 1) from e
    except yaml.reader.ReaderError as e:
        row = text[: e.position].count("\n") + 1
        raise UserError(f"invalid YAML: {e.reason}", file=path, row=row, found=chr(e.character)) from e
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, TypeError, RecursionError) as e:
        if isinstance(e, UserError):
            raise
        raise UserError(f"invalid YAML: {first_line(e)}", file=path) from e
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items()}


def first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0]


def _check_events(path: Path, text: str) -> None:
    """UserError unless the file is a mapping of moderate depth and size. Parser events need no recursion."""
    opened: list[tuple[str | None, int]] = []  # (anchor, values before it)
    sizes, values, repeated = dict[str | None, int](), 0, 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.CollectionEndEvent):
            anchor, before = opened.pop()
            sizes[anchor] = values - before
            continue
        if not isinstance(event, yaml.NodeEvent):
            continue
        row = event.start_mark.line + 1
        if values == 0 and not isinstance(event, yaml.MappingStartEvent):
            _refuse_non_mapping(path, row, event)
        size = sizes.get(event.anchor, 1) if isinstance(event, yaml.AliasEvent) else 1
        values, repeated = values + size, repeated + size - 1
        if isinstance(event, yaml.CollectionStartEvent):
            opened.append((event.anchor, values - 1))
        if len(opened) > MAX_DEPTH:
            raise UserError(
                "the config file is nested too deep", file=path, row=row, expected=f"at most {MAX_DEPTH} levels"
            )
        if repeated > MAX_REPEATED:
            expected = f"at most {MAX_REPEATED:,} values that aliases (*name) repeat"
            raise UserError("aliases make the config file too large", file=path, row=row, expected=expected)
    if values == 0:
        raise UserError("the config file is empty", file=path, expected="key: value lines")


def _refuse_non_mapping(path: Path, row: int, event: Any) -> None:
    if isinstance(event, yaml.ScalarEvent) and event.value in ("", "~", "null"):
        raise UserError("the config file is empty", file=path, row=row, expected="key: value lines")
    found = next(name for kind, name in KINDS.items() if isinstance(event, kind))
    raise UserError("the config file must be a mapping", file=path, row=row, found=found, expected="key: value lines")


def _begins_with_tab(text: str, mark: Any) -> bool:
    return mark is not None and text.split("\n")[mark.line].lstrip(" ").startswith("\t")
