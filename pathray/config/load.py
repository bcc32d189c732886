"""Loads typed configs: a dataclass schema, YAML layers over it, `key=value` on top. Independent of any science.

Order: schema defaults < groups chosen in files < `--config` files and groups of the command line, in the order typed <
`key=value`. Not here: merging a layer (pathray/config/tree.py), identity and placement (pathray/fingerprint.py), the
text of `--help` (pathray/config/help.py).

Schemas are plain dataclasses at the top level of a module other than ``__main__``. A required key is `key: int =
MISSING`; `__post_init__` checks values and raises `UserError`. It also runs on the defaults, so it must accept a
required key that is not set: `if is_set(self.key) and …`. A comment after a field is its help text.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Any, Generic, TypeVar

from omegaconf import MISSING, OmegaConf

from pathray.config.files import read_config_file
from pathray.config.tree import COMMAND_LINE, ConfigTree
from pathray.errors import MissingFile, UserError
from pathray.fingerprint import ABSENT, fingerprint, flatten, list_differences, placement
from pathray.store.storage import check_regular

__all__ = [
    "ABSENT",
    "MISSING",
    "Group",
    "Loaded",
    "list_differences",
    "fingerprint",
    "flatten",
    "is_set",
    "load_config",
    "placement",
]

T = TypeVar("T")
Chosen = dict[str, tuple[str, str]]  # group name -> (chosen name, where it was chosen)
Files = Sequence[tuple[Path, dict[str, Any]]]


@dataclass(frozen=True)
class Group:
    """`name=x` loads `<configs_dir>/<name>/<x>.yaml` (or the path `x`) and merges it at the key `mount` ("" = root).

    `name.key=value` means `mount.key=value`. The choice can also be made in a `--config` file (`name: x`; the command
    line takes precedence), or in the file of a root-mounted group for groups declared after it.

    `settle(section, unchanged)` gets the finished section at the mount, which it may change, and the section as the
    group's file alone makes it. It can so correct a name in that file after other layers changed its values.
    """

    name: str
    mount: str
    settle: Callable[[Any, Any], None] | None = None


@dataclass
class Loaded(Generic[T]):
    """A resolved config, the YAML text that reproduces it, and the layers it was made of."""

    config: T
    yaml: str
    dry_run: bool = False
    print_config: bool = False
    sources: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # what the user should know about how layers were merged


@dataclass
class _Arguments:
    files: list[str] = field(default_factory=list)
    pairs: list[tuple[str, str]] = field(default_factory=list)
    before: dict[str, int] = field(default_factory=dict)  # key of a pair: how many files were typed before it
    flags: set[str] = field(default_factory=set)


def is_set(value: object) -> bool:
    """False for a required key that is not set yet."""
    return not (isinstance(value, str) and value == MISSING)


def load_config(
    schema: type[T], argv: Sequence[str], *, configs_dir: Path | str, groups: Sequence[Group] = ()
) -> Loaded[T]:
    """Load the config: `argv` (without the program's name) over YAML files over the defaults of `schema`.

    Raises `UserError` for an unknown option, a misspelt key (with its file and the nearest right name), a wrong type
    (key, found, expected), a missing required key, a bad interpolation, and what a `__post_init__` raises;
    `MissingFile` for a missing file. `--help` prints the keys and raises `SystemExit(0)`.
    """
    assert schema.__module__ != "__main__", f"{schema.__name__} lives in __main__ and cannot be pickled for a worker"
    configs_dir, args = Path(configs_dir), _parse(argv)
    if "--help" in args.flags:
        from pathray.config.help import help_text

        print(help_text(schema, configs_dir, [(g.name, g.mount) for g in groups]))
        raise SystemExit(0)
    files = [(path, read_config_file(path)) for path in (_find(name, configs_dir) for name in args.files)]
    layers, chosen = _group_layers(groups, _choices(files, args, groups), configs_dir)
    tree, sources = ConfigTree(schema, {g.name: g.mount for g in groups}), []
    turns = {name: args.before[name] if source == COMMAND_LINE else 0 for name, (_, source) in chosen.items()}
    notes = _lay(tree, files, layers, turns)
    for key, text in args.pairs:
        if key not in chosen:
            tree.lay_text(key, text)
            sources.append(f"{key}={text}")
    config = tree.finish()
    _settle(config, schema, layers)
    sources = [f"{name}={x}" for name, (x, _) in chosen.items()] + [str(path) for path, _ in files] + sources
    resolved = OmegaConf.to_yaml(OmegaConf.structured(config))
    return Loaded(config, resolved, "--dry-run" in args.flags, "--print-config" in args.flags, sources, notes)


def _lay(
    tree: ConfigTree, files: Files, layers: Sequence[tuple[Group, Path, dict[str, Any]]], turns: Mapping[str, int]
) -> list[str]:
    """Lay files and groups; `turns`: how many files come before a group. Returns notes on values of files that groups
    replaced."""
    notes: list[str] = []
    for turn in range(len(files) + 1):
        for group, path, content in layers:
            if turns[group.name] == turn:
                changed = tree.lay(content, str(path), at=group.mount)
                notes += [f"{group.name}={path.stem} replaces {', '.join(changed)}"] if changed else []
        if turn < len(files):
            tree.lay(files[turn][1], str(files[turn][0]))
    return notes


def _settle(config: Any, schema: type[Any], layers: Sequence[tuple[Group, Path, dict[str, Any]]]) -> None:
    for group, path, content in layers:
        if group.settle is not None:
            unchanged = ConfigTree(schema, {})
            unchanged.lay(content, str(path), at=group.mount)
            group.settle(attrgetter(group.mount)(config), OmegaConf.select(unchanged.config, group.mount))


def _parse(argv: Sequence[str]) -> _Arguments:
    args, words = _Arguments(), list(argv)
    while words:
        word = words.pop(0)
        name, has_value, value = word.partition("=")
        if name == "--config":
            if not value and not words:
                raise UserError("--config needs a file", expected="--config run.yaml")
            args.files.append(value or words.pop(0))
        elif word in ("--dry-run", "--print-config", "--help", "-h"):
            args.flags.add("--help" if word == "-h" else word)
        elif word.startswith("-"):
            known = "--config FILE, --dry-run, --print-config or --help; everything else is key=value"
            raise UserError("unknown option", found=word, expected=known)
        elif not has_value:
            raise UserError("argument is neither an option nor key=value", found=word, expected="key=value")
        else:
            args.pairs.append((name.strip(), value))
            args.before[name.strip()] = len(args.files)
    return args


def _find(name: str, configs_dir: Path) -> Path:
    """The path of a `--config` value: a file, or the name of a shipped one under `configs_dir` (`runs/smoke`)."""
    for path in (Path(name), configs_dir / name, configs_dir / f"{name}.yaml"):
        if path.is_file():
            return path
    if os.path.exists(name):
        check_regular(name)
    shipped = sorted(p.relative_to(configs_dir).with_suffix("").as_posix() for p in configs_dir.glob("**/*.yaml"))
    raise MissingFile("config file not found", file=name, expected=f"a file, or one of {', '.join(shipped)}")


def _choices(files: Files, args: _Arguments, groups: Sequence[Group]) -> Chosen:
    """The chosen groups. Choices in files are removed from the files' content."""
    names = [g.name for g in groups]
    chosen: Chosen = {}
    for path, content in files:
        chosen |= {name: (content.pop(name), str(path)) for name in names if isinstance(content.get(name), str)}
    return chosen | {key: (text, COMMAND_LINE) for key, text in args.pairs if key in names}


def _group_layers(
    groups: Sequence[Group], chosen: Chosen, configs_dir: Path
) -> tuple[list[tuple[Group, Path, dict[str, Any]]], Chosen]:
    layers = []
    for i, group in enumerate(groups):
        if group.name not in chosen:
            continue
        name, source = chosen[group.name]
        path = Path(name) if name.endswith((".yaml", ".yml")) else configs_dir / group.name / f"{name}.yaml"
        if not path.is_file():
            shipped = ", ".join(sorted(p.stem for p in (configs_dir / group.name).glob("*.yaml")))
            expected = f"one of {shipped}, or the path of a .yaml" if shipped else "the path of a .yaml"
            raise MissingFile(f"no such {group.name}", file=source, key=group.name, found=name, expected=expected)
        content = read_config_file(path)
        for later in groups[i + 1 :] if not group.mount else ():
            if isinstance(content.get(later.name), str):
                inner = content.pop(later.name)
                chosen = {later.name: (inner, str(path))} | chosen
        layers.append((group, path, content))
    return layers, chosen
