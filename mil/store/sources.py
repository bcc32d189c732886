"""Finds the bags of a store: all H5 files below a folder, or the slides of the predecessor's store in it; or those of a
table's slides. Not here: reading them (mil.store.open_bags)."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mil.store.index_arrays import holds_arrays
from mil.store.open_bags import open_bag_of, paths_of, state_of
from mil.store.places import BuildSettings, Source
from mil.store.reading import Store
from mil.store.write import digest_of
from pathray.errors import MissingFile, UserError
from pathray.files.sheet import read_sheet


@dataclass(frozen=True)
class Listed:
    """The bags to store, and the slides that are listed without one, each with the reason."""

    sources: tuple[Source, ...]
    missing: tuple[tuple[str, str], ...] = ()


def find_bags(folder: str, csv: str | None = None, slide_column: str = "slide_id") -> Listed:
    """The bags below the local `folder`, slide ids being file names without `.h5`, or the slides of a predecessor's
    store (index_arrays.npz); with `csv` only those of its slides.

    A column `slide_path` of the table gives a slide's bag, relative to `folder`. MissingFile without bags; UserError
    for two bags of one name.
    """
    root = Path(folder)
    if not root.is_dir():
        raise MissingFile("no folder of bags", file=folder, key="data.features", expected="a folder of SLIDE_ID.h5")
    found = paths_of(folder) if holds_arrays(folder) else _files_by_name(root)
    if csv is None:
        if not found:
            raise MissingFile("no bags here", file=folder, key="data.features", expected="SLIDE_ID.h5, at any depth")
        return Listed(tuple(Source(name, path) for name, path in sorted(found.items())))
    sheet = read_sheet(csv)
    sheet.need(slide_column)
    names = sheet.texts(slide_column)
    paths = sheet.texts("slide_path") if "slide_path" in sheet.names else None
    sources, missing = list[Source](), list[tuple[str, str]]()
    for i, name in enumerate(dict.fromkeys(names)):
        given = root / paths[i] if paths is not None else None
        bag = str(given) if given is not None and given.exists() else found.get(name)
        if bag is None:
            missing.append((name, f"no bag: {given or root / f'{name}.h5'}"))
        else:
            sources.append(Source(name, bag))
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
    if state_of(path) == (row["source_bytes"], row["source_modified_ns"]):
        return True
    try:
        with open_bag_of(path) as bag:
            return digest_of(bag) == str(row["source_sha256"])
    except UserError:
        return False


def _files_by_name(root: Path) -> dict[str, str]:
    """The H5 files below a folder by the ids of their slides. UserError for two of one name."""
    found: dict[str, str] = {}
    for path in sorted(path for path in root.rglob("*.h5") if not path.name.startswith(".")):
        if (other := found.setdefault(path.stem, str(path))) != str(path):
            message, both = "two bags of one slide", f"{other} and {path}"
            raise UserError(message, file=str(root), key=path.stem, found=both, expected="a bag for each slide id")
    return found
