"""Finds the bags of a store: all H5 files below a folder, or those of a table's slides. Not here: reading them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mil.store.places import BuildSettings, Source
from mil.store.reading import Store
from mil.store.write import digest_of
from pathray.errors import MissingFile, UserError
from pathray.features.read_bags import open_bag
from pathray.files.sheet import read_sheet


@dataclass(frozen=True)
class Listed:
    """The bags to store, and the slides that are listed without one, each with the reason."""

    sources: tuple[Source, ...]
    missing: tuple[tuple[str, str], ...] = ()


def find_bags(folder: str, csv: str | None = None, slide_column: str = "slide_id") -> Listed:
    """The bags below the local `folder`, slide ids being file names without `.h5`; with `csv` only those of its slides.

    A column `slide_path` of the table gives a slide's bag, relative to `folder`. MissingFile without bags; UserError
    for two bags of one name.
    """
    root = Path(folder)
    if not root.is_dir():
        raise MissingFile("no folder of bags", file=folder, key="data.features", expected="a folder of SLIDE_ID.h5")
    found: dict[str, Path] = {}
    for path in _files(root):
        if (other := found.setdefault(path.stem, path)) != path:
            message, both = "two bags of one slide", f"{other} and {path}"
            raise UserError(message, file=folder, key=path.stem, found=both, expected="a bag for each slide id")
    if csv is None:
        if not found:
            raise MissingFile("no bags here", file=folder, key="data.features", expected="SLIDE_ID.h5, at any depth")
        return Listed(tuple(Source(name, str(path)) for name, path in sorted(found.items())))
    sheet = read_sheet(csv)
    sheet.need(slide_column)
    names = sheet.texts(slide_column)
    paths = sheet.texts("slide_path") if "slide_path" in sheet.names else None
    sources, missing = list[Source](), list[tuple[str, str]]()
    for i, name in enumerate(dict.fromkeys(names)):
        given = root / paths[i] if paths is not None else None
        bag = given if given is not None and given.exists() else found.get(name)
        if bag is None:
            missing.append((name, f"no bag: {given or root / f'{name}.h5'}"))
        else:
            sources.append(Source(name, str(bag)))
    return Listed(tuple(sorted(sources, key=lambda s: s.slide_id)), tuple(missing))


def is_current(folder: str, sources: Iterable[Source], settings: BuildSettings) -> bool:
    """Whether the store in `folder` has just these bags with these settings. Bags whose size and time of change are as
    they were count as unchanged; others are read and compared by content, so a touched file is current and one with
    other features of equal shape is not."""
    try:
        store = Store(folder)
    except UserError:
        return False
    wanted = {one.slide_id: one.path for one in sources}
    if json.loads(json.dumps(asdict(settings))) != store.meta["settings"] or set(wanted) != set(store.ids):
        return False
    return all(_is_unchanged(row, wanted[row["slide_id"]]) for row in store.slides.to_pylist())


def _is_unchanged(row: dict[str, Any], path: str) -> bool:
    state = os.stat(path)
    if (state.st_size, state.st_mtime_ns) == (row["source_bytes"], row["source_modified_ns"]):
        return True
    try:
        with open_bag(path) as bag:
            return digest_of(bag) == str(row["source_sha256"])
    except UserError:
        return False


def _files(root: Path) -> Sequence[Path]:
    return sorted(path for path in root.rglob("*.h5") if not path.name.startswith("."))
