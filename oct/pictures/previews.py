"""The preview of sample volumes: two slides of each, and a page with all of them and a table of their geometry.

    s000_<file>.png         as stored, on the grid, augmented
    s000_<file>_masks.png   the masks of every kind
    index.html              all slides, by their names next to it

Files and the page only. Not here: slides (oct.pictures.slides, oct.pictures.mask_slides), volumes
(oct.pictures.samples).
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oct.config import RunConfig
from oct.masks import MaskSampler
from oct.pictures.mask_slides import draw_masks_slide
from oct.pictures.samples import Origin, VolumeSample, read_sample
from oct.pictures.slides import draw_states, png_bytes
from pathray.errors import UnreadableUnit
from pathray.reports.page import PagePicture, render_page
from pathray.urls import public_text

TEMPLATES = Path(__file__).parent / "templates"
AXIS_NAMES = ("slow axis", "depth", "along a B-scan")
MOST_TRIES = 10  # files per sample that may turn out to be no volume


@dataclass(frozen=True)
class Entry:
    """A volume on the page: the names of its slides, and its facts in the order of the table."""

    title: str
    path: str
    slides: tuple[str, str]
    cells: tuple[str, ...]
    notes: tuple[str, ...]


def read_samples(
    config: RunConfig, origins: Sequence[Origin], count: int, left_out: list[tuple[str, str]]
) -> Iterator[VolumeSample]:
    """The first `count` volumes of `origins` that can be read; others go to `left_out` as (path, reason). At most
    `MOST_TRIES` files are tried for each."""
    found = 0
    for origin in origins[: MOST_TRIES * count]:
        if found == count:
            return
        try:
            sample = read_sample(config, origin, found)
        except UnreadableUnit as e:
            left_out.append((origin.path, f"{e.reason}: {e.detail}".rstrip(": ")))
            continue
        yield sample
        found += 1


def slide_files(sample: VolumeSample, config: RunConfig, number: int, scale: float) -> Iterator[tuple[str, bytes]]:
    """(name, content) of the slides of one volume."""
    states, masks = slide_names(sample, number)
    yield states, png_bytes(draw_states(sample, config, scale))
    yield masks, png_bytes(draw_masks_slide(sample, config, scale))


def slide_names(sample: VolumeSample, number: int) -> tuple[str, str]:
    """Names of the two slides, by the file of the volume."""
    stem, _ = posixpath.splitext(posixpath.basename(sample.origin.path))
    safe = "".join(c if c.isalnum() or c in "-_." else "-" for c in stem)
    return f"s{number:03d}_{safe}.png", f"s{number:03d}_{safe}_masks.png"


def describe_sample(sample: VolumeSample, number: int) -> Entry:
    """What the page says of a volume."""
    header, geometry, origin = sample.header, sample.header.geometry, sample.origin
    spacing = (
        f"{'not known' if source == 'assumed' else f'{mm:.4g}'} ({source.replace('_', ' ')})"
        for mm, source in zip(geometry.spacing_mm, geometry.sources, strict=True)
    )
    size = f"{header.frames} × {header.rows} × {header.columns}"
    cells = (
        posixpath.basename(origin.path),
        origin.device,
        sample.eye,
        origin.region,
        size,
        *spacing,
        f"{sample.image_share:.1%}",
    )
    notes = (*header.notes, *geometry.notes, *(f"no mask {why}" for why in sample.left_out))
    return Entry(f"{number + 1}. {origin.device}, {sample.eye}", origin.path, slide_names(sample, number), cells, notes)


def preview_page(config: RunConfig, entries: Sequence[Entry], left_out: Sequence[tuple[str, str]], source: str) -> str:
    """The page, whose pictures are files next to it."""
    shown = [
        {
            "title": entry.title,
            "path": entry.path,
            "notes": entry.notes,
            "pictures": [
                PagePicture(entry.slides[0], f"{entry.title}: as stored, on the grid, augmented", ""),
                PagePicture(entry.slides[1], f"{entry.title}: hidden tokens", ""),
            ],
        }
        for entry in entries
    ]
    columns = (
        "volume",
        "device",
        "eye",
        "region",
        "size (z × y × x)",
        *(f"{a}, mm" for a in AXIS_NAMES),
        "image share",
    )
    values: dict[str, Any] = {
        "facts": run_facts(config, source),
        "columns": columns,
        "rows": [entry.cells for entry in entries],
        "volumes": shown,
        "left_out": left_out,
    }
    return render_page("preview.html.j2", values, TEMPLATES)


def run_facts(config: RunConfig, source: str) -> list[tuple[str, str]]:
    """What of the config decides these pictures."""
    data, sampler = config.data, MaskSampler.of(config)
    counts = (f"{h:,} hidden, {v:,} visible" for h, v in zip(sampler.hidden, sampler.visible, strict=True))
    voxels, mm = _product(data.image_size), _product(data.spacing_mm)
    return [
        ("Volumes of", public_text(source)),
        ("Grid", f"{voxels} voxels of {mm} mm (slow axis, depth, along), in depth around the {data.crop}"),
        ("Tokens", f"{_product(config.tokens)}, of {_product(config.model.patch_size)} voxels each"),
        ("Mask", f"{config.mask.kind}: {'; '.join(counts)}"),
    ]


def _product(values: Iterable[float]) -> str:
    return " × ".join(f"{value:g}" for value in values)
