"""Turns a user's folder of slides (or manifest) into the manifest for the demo's pretraining."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

from pathray.errors import MissingFile, UnreadableUnit, UserError

SUFFIXES = (".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".svslide", ".czi", ".isyntax")
SHOWN = 8


def manifest_of(slides: Path, output: Path, mpp: float | None = None) -> Path:
    """The manifest to train on: `slides` itself if it is a CSV, else one written to `output` for the folder's slides.

    `mpp` is used for slides without a spacing. Raises MissingFile, and UserError for a folder without slides, for
    unsupported formats, and for slides without a spacing if `mpp` is not given.
    """
    if not slides.exists():
        raise MissingFile("no such folder of slides", file=slides, key="slides")
    if slides.is_file():
        if slides.suffix.lower() != ".csv":
            raise UserError(
                "not a folder of slides or a manifest", file=slides, key="slides", expected="a folder or a .csv"
            )
        return slides
    found = find_slides(slides)
    rows = [_row(path, slides, mpp) for path in found]
    _require_spacing([row for row in rows if not row["known"]], slides, mpp)
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.open("w", newline="") as f:
        writer = csv.writer(f)
        writer.writerow(["slide_id", "wsi_path", "mask_path", "mpp"])
        for row in rows:
            writer.writerow([row["slide_id"], row["wsi_path"], "", row["mpp"]])
    return output


def find_slides(folder: Path) -> list[Path]:
    """The sorted slide files below `folder`. UserError, naming the files found instead, if there is none."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith("."))
    slides = [p for p in files if p.suffix.lower() in SUFFIXES]
    if slides:
        return slides
    there = Counter(p.suffix.lower() or "no suffix" for p in files)
    names = ", ".join(f"{count} × {suffix}" for suffix, count in there.most_common(SHOWN)) or "nothing"
    expected = "slides: " + " ".join(SUFFIXES)
    raise UserError("the folder has no slides", file=folder, key="slides", found=names, expected=expected)


def _row(path: Path, folder: Path, mpp: float | None) -> dict[str, object]:
    from pathray.wsi.reader import open_slide

    slide_id = "-".join(path.relative_to(folder).with_suffix("").parts)
    try:
        slide = open_slide(str(path))
    except UnreadableUnit as error:
        raise UserError("the slide cannot be read", file=path, key="slides", found=str(error)) from error
    own, levels = slide.mpp, slide.level_shapes
    slide.close()
    if not levels:
        raise UserError("the slide cannot be read", file=path, key="slides", found="no image")
    known = own is not None or mpp is not None
    return {
        "slide_id": slide_id,
        "wsi_path": str(path.resolve()),
        "mpp": "" if own is not None or mpp is None else mpp,
        "known": known,
    }


def _require_spacing(unknown: list[dict[str, object]], folder: Path, mpp: float | None) -> None:
    if not unknown:
        return
    names = ", ".join(str(row["slide_id"]) for row in unknown[:SHOWN])
    raise UserError(
        f"{len(unknown)} slides do not say their spacing: {names}",
        file=folder,
        key="mpp",
        expected="make demo SLIDES=… MPP=0.5 (µm per pixel at full resolution; 0.5 is 20×, 0.25 is 40×)",
    )
