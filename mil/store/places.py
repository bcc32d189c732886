"""Lays a store out: which bags there are, how large they are, and where each slide's rows go.

Not here: reading and writing features (mil.store.write).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mil.store.cap import STRATEGIES, STRATIFIED
from mil.store.format import CHUNK_BYTES, DTYPES
from mil.store.open_bags import open_bag_of
from pathray.errors import UserError
from pathray.reports.units import describe


@dataclass(frozen=True)
class BuildSettings:
    """What determines a store's content, besides the bags. `max_instances` None keeps all tiles."""

    dtype: str = "float16"
    max_instances: int | None = 16384
    cap_strategy: str = STRATIFIED
    cap_grid_size: int = 32
    seed: int = 42
    chunk_bytes: int = CHUNK_BYTES

    def __post_init__(self) -> None:
        assert self.dtype in DTYPES and self.cap_strategy in STRATEGIES, self


@dataclass(frozen=True)
class Source:
    """A slide and its bag, an H5 file."""

    slide_id: str
    path: str


@dataclass(frozen=True)
class Header:
    """The size of a bag; with an `error` it cannot be read."""

    source: Source
    rows: int = 0
    dim: int = 0
    error: str = ""


@dataclass(frozen=True)
class Place:
    """Where a slide's rows go: `rows` from row `start` of a chunk on, in the folder `folder`."""

    source: Source
    folder: str
    chunk: int
    start: int
    rows: int
    dim: int
    settings: BuildSettings


def read_header(source: Source) -> Header:
    """The bag's size, without its features."""
    try:
        with open_bag_of(source.path) as bag:
            return Header(source, bag.rows, bag.dim)
    except (UserError, OSError) as e:
        return Header(source, error=describe(e))


def lay_out(headers: Sequence[Header], folder: str, settings: BuildSettings) -> list[Place]:
    """A place for each readable bag, slides by id. UserError for a slide listed twice, and for bags of different
    widths."""
    readable = sorted((h for h in headers if not h.error), key=lambda h: h.source.slide_id)
    _check_once([h.source for h in headers])
    _check_widths(readable)
    places, chunk, start = list[Place](), 0, 0
    for header in readable:
        rows = min(header.rows, settings.max_instances or header.rows)
        width = header.dim * np.dtype(settings.dtype).itemsize
        if start and (start + rows) * width > settings.chunk_bytes:
            chunk, start = chunk + 1, 0
        places.append(Place(header.source, folder, chunk, start, rows, header.dim, settings))
        start += rows
    return places


def _check_once(sources: Sequence[Source]) -> None:
    seen: dict[str, str] = {}
    for source in sources:
        if (first := seen.setdefault(source.slide_id, source.path)) != source.path:
            found = f"{source.slide_id}, also in {first}"
            raise UserError("two bags of one slide", file=source.path, found=found, expected="a bag for each slide id")


def _check_widths(headers: Sequence[Header]) -> None:
    by_width: dict[int, list[str]] = {}
    for header in headers:
        by_width.setdefault(header.dim, []).append(header.source.path)
    if len(by_width) > 1:
        found = ", ".join(f"{len(paths)} of {dim} (such as {paths[0]})" for dim, paths in sorted(by_width.items()))
        rare = min(by_width.values(), key=len)[0]
        message, expected = "bags have features of different widths", "bags of one encoder"
        raise UserError(message, file=rare, key="features", found=found, expected=expected)
