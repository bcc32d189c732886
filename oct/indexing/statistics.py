"""Figures of an index per device: volumes, persons, eyes, sizes, spacings and their sources, share of the grid.

All come from the index; no file is opened. Not here: figures of the pixels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from oct.volume import AXES, Grid, Triple

Floats = npt.NDArray[np.float64]
SIZE = ("frames", "rows", "columns")  # along z, y, x
HEADER = ("device", "volumes", "persons", "eyes", "size (z×y×x)", "spacing (z, y, x) mm", "sources (z, y, x)", "image")
SIZES_SHOWN = 2


@dataclass(frozen=True)
class DeviceStatistics:
    """The accepted volumes of one device.

    eyes: of known laterality, both eyes of a person being two. sizes: (frames, rows, columns) and how many volumes
    have it, the most frequent first. spacing_mm: medians (z, y, x) of the volumes whose spacing is recorded, NaN where
    it is of none. sources: per axis, how many volumes have it from where. image_share: mean share of the grid's voxels
    that are image.
    """

    device: str
    volumes: int
    persons: int
    eyes: int
    unknown_eyes: int
    sizes: tuple[tuple[tuple[int, int, int], int], ...]
    spacing_mm: Triple
    sources: tuple[Counter[str], Counter[str], Counter[str]]
    image_share: float


def image_shares(table: pa.Table, grid: Grid) -> Floats:
    """The share `[N]` of the grid's voxels that are image, by size and spacing alone.

    Per axis, a volume of n samples every d mm fills min(N, round(n·d / D)) of the N voxels of D mm, and at least one.
    An axis with an assumed spacing is fitted to the grid, so it fills all of it. Frames at irregular distances are
    taken as evenly spaced.
    """
    share = np.ones(table.num_rows)
    for axis, size, number, step in zip(AXES, SIZE, grid.shape, grid.spacing_mm, strict=True):
        extent = table[size].to_numpy() * table[f"spacing_{axis}_mm"].to_numpy()
        assumed = pc.equal(table[f"source_{axis}"], "assumed").to_numpy()
        filled = np.clip(np.floor(extent / step + 0.5), 1, number)
        share *= np.where(assumed, number, filled) / number
    return share


def statistics(accepted: pa.Table, grid: Grid) -> list[DeviceStatistics]:
    """The figures of each device of an index's accepted rows, by name."""
    devices = sorted(set(accepted["device"].to_pylist()))
    return [_of_device(accepted.filter(pc.equal(accepted["device"], name)), name, grid) for name in devices]


def _of_device(table: pa.Table, name: str, grid: Grid) -> DeviceStatistics:
    eyes = list(zip(table["person"].to_pylist(), table["laterality"].to_pylist(), strict=True))
    sizes = Counter(zip(*(table[column].to_pylist() for column in SIZE), strict=True))
    z, y, x = (Counter(table[f"source_{axis}"].to_pylist()) for axis in AXES)
    dz, dy, dx = (_median(table, axis) for axis in AXES)
    return DeviceStatistics(
        device=name,
        volumes=table.num_rows,
        persons=len({person for person, _ in eyes}),
        eyes=len({eye for eye in eyes if eye[1]}),
        unknown_eyes=sum(not side for _, side in eyes),
        sizes=tuple(sorted(sizes.items(), key=lambda item: (-item[1], item[0]))),
        spacing_mm=(dz, dy, dx),
        sources=(z, y, x),
        image_share=float(image_shares(table, grid).mean()),
    )


def _median(table: pa.Table, axis: str) -> float:
    recorded = table.filter(pc.not_equal(table[f"source_{axis}"], "assumed"))[f"spacing_{axis}_mm"].to_numpy()
    return float(np.median(recorded)) if recorded.size else float("nan")


def text_table(rows: Sequence[DeviceStatistics]) -> str:
    """The figures as lines of text, with a header."""
    cells = [HEADER, *(_cells(row) for row in rows)]
    widths = [max(len(line[k]) for line in cells) for k in range(len(HEADER))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(c, widths, strict=True)).rstrip() for c in cells
    )


def _cells(row: DeviceStatistics) -> tuple[str, ...]:
    eyes = f"{row.eyes:,}" + (f" (+{row.unknown_eyes:,} volumes of unknown side)" if row.unknown_eyes else "")
    sizes = [f"{'×'.join(map(str, size))} ({count:,})" for size, count in row.sizes[:SIZES_SHOWN]]
    more = len(row.sizes) - SIZES_SHOWN
    sizes += [f"and {more:,} more"] if more > 0 else []
    spacing = ", ".join("–" if np.isnan(value) else f"{value:.4g}" for value in row.spacing_mm)
    sources = ", ".join(_sources(counts) for counts in row.sources)
    share = f"{row.image_share:.1%}"
    return row.device, f"{row.volumes:,}", f"{row.persons:,}", eyes, ", ".join(sizes), spacing, sources, share


def _sources(counts: Counter[Any]) -> str:
    if len(counts) == 1:
        return str(next(iter(counts)))
    return "+".join(f"{name} {count:,}" for name, count in counts.most_common())
