"""The text of `--help`: every key with its type, default and comment, and the choices of each group."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pathray.config.schema import fields_of, is_section, type_text, without_none

USAGE = """usage: {program} [--config FILE]… [--dry-run] [--print-config] [GROUP=NAME]… [KEY=VALUE]…

  --config FILE    a YAML layer; repeatable, later ones win{shipped}
  --dry-run        check everything, start nothing
  --print-config   print the resolved config and exit
Order: defaults < groups and --config files, in the order typed < key=value."""


def help_text(schema: type[Any], configs_dir: Path, groups: Sequence[tuple[str, str]]) -> str:
    shipped = sorted(p.stem for p in configs_dir.glob("*.yaml"))
    runs = sorted(f"runs/{p.stem}" for p in configs_dir.glob("runs/*.yaml"))
    names = f" ({', '.join(shipped + runs)} ship)" if shipped or runs else ""
    lines = [USAGE.format(program=_program(), shipped=names)]
    if groups:
        lines += ["", "groups:"]
    for name, mount in groups:
        choices = sorted(p.stem for p in (configs_dir / name).glob("*.yaml"))
        options = "|".join([*choices, "FILE.yaml"])
        lines.append(f"  {name}={options}   merged into {mount or 'the whole config'}")
    lines += ["", "keys (* may change when a run is resumed):", *_section_lines(schema, "", False)]
    return "\n".join(lines)


def _section_lines(section: Any, prefix: str, is_placement: bool) -> list[str]:
    comments = field_comments(section)
    by_name = {f.name: f for f in dataclasses.fields(section)}
    lines: list[str] = []
    hints = fields_of(section)
    # what a nested section inherits is common to many: its own keys come first
    for name in sorted(hints, key=_inherited_fields(section).__contains__) if prefix else hints:
        hint = hints[name]
        free = is_placement or bool(by_name[name].metadata.get("placement"))
        if is_section(hint):
            lines += _section_lines(without_none(hint), f"{prefix}{name}.", free)
            continue
        line = f"  {'*' if free else ' '} {prefix}{name}: {type_text(hint)}{_default(by_name[name])}"
        lines.append(f"{line}   # {comments[name]}" if name in comments else line)
    return lines


def _inherited_fields(section: Any) -> set[str]:
    bases = [base for base in section.__bases__ if dataclasses.is_dataclass(base)]
    return {f.name for base in bases for f in dataclasses.fields(base)}


def _default(f: dataclasses.Field[Any]) -> str:
    value = f.default
    if f.default_factory is not dataclasses.MISSING:
        value = f.default_factory()
    if value is dataclasses.MISSING or value == "???":
        return "   REQUIRED"
    return f" = {'null' if value is None else list(value) if isinstance(value, tuple) else value}"


def field_comments(section: Any) -> dict[str, str]:
    """Field name -> its comment in the source: on the same line, or else on the lines right above."""
    found: dict[str, str] = {}
    for base in reversed(section.__mro__[:-1]):
        try:
            lines = textwrap.dedent(inspect.getsource(base)).splitlines()
        except (OSError, TypeError):
            continue
        cls = ast.parse("\n".join(lines)).body[0]
        for node in cls.body if isinstance(cls, ast.ClassDef) else []:
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                comment = _comment(lines, node.lineno - 1, node.end_lineno or node.lineno, node.end_col_offset or 0)
                if comment:
                    found[node.target.id] = comment
    return found


def _comment(lines: list[str], first: int, end: int, column: int) -> str:
    behind = lines[end - 1].encode()[column:].decode().strip()
    if behind.startswith("#"):
        return behind.lstrip("# ")
    above: list[str] = []
    while first > 0 and lines[first - 1].strip().startswith("#"):
        first -= 1
        above.insert(0, lines[first].strip().lstrip("# "))
    return " ".join(above)


def _program() -> str:
    import sys

    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    return f"python -m {spec.name.removesuffix('.__main__')}" if spec else "python -m ray_jobs.JOB"
