"""Generates a small cohort of slides that look like two hospitals' histology, free to share.

    python -m demo.cohort output=demo_output/cohort slides_per_hospital=3

Each hospital has its own stain, scanner, spacing and file layout; each slide an organ, with benign glands, tumour and
lymphoid tissue. Equal settings give equal files. It writes slides, masks without fat (for one hospital; masks of the
other are computed later), a slide manifest, and labelled patches for robustness evaluation. It is not a model of
disease.
"""

from __future__ import annotations

import csv
import json
import os
import sys
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from demo.anatomy import STEP, ZONES, Anatomy, grow
from demo.organs import ORGANS, organ
from demo.scanner import HOSPITALS, Hospital, Picture, scan, vary_stain, write_slide
from demo.tissue_painter import compose, paint
from pathray.errors import UserError

STRIP = 512
DONE = "cohort.json"
LABELS = ("benign", "tumour", "lymphoid")
VERSION = 3


@dataclass(frozen=True)
class CohortSettings:
    """The settings that determine the cohort's content."""

    slides_per_hospital: int = 3
    size_um: float = 2048.0
    seed: int = 0
    patches_per_label: int = 16  # of every slide, 0 for none
    patch_px: int = 144  # whole patches of 12 and of 16 pixels
    patch_mpp: float = 1.0

    def __post_init__(self) -> None:
        for key, least in (("slides_per_hospital", 1), ("size_um", 256), ("patches_per_label", 0), ("patch_px", 32)):
            if getattr(self, key) < least:
                raise UserError(
                    f"{key} must be >= {least}", key=key, found=getattr(self, key), expected=f"at least {least}"
                )


@dataclass(frozen=True)
class SlidePlan:
    """The plan of one slide."""

    slide_id: str
    organ: str
    hospital: Hospital
    seed: int
    tumour_share: float
    pieces: int


def plan(settings: CohortSettings) -> list[SlidePlan]:
    """The slides of a cohort: the same sequence of organs for every hospital."""
    names, slides = list(ORGANS), []
    for hospital in HOSPITALS:
        for k in range(settings.slides_per_hospital):
            name = names[k % len(names)]
            slide_id = f"{hospital.name}-{name}-{k // len(names) + 1}"
            seed = zlib.crc32(f"{settings.seed}/{slide_id}".encode())
            rng = np.random.default_rng([seed, 0])
            share, pieces = float(rng.uniform(0.3, 0.45)), 1 + int(rng.random() < 0.25)
            slides.append(SlidePlan(slide_id, name, vary_stain(hospital, seed), seed, share, pieces))
    return slides


def generate(folder: str | os.PathLike[str], settings: CohortSettings | None = None, *, workers: int = 2) -> Path:
    """Generate the cohort in `folder`, unless it exists with equal settings; returns the path of its manifest."""
    settings, root = settings or CohortSettings(), Path(folder)
    identity = {"version": VERSION, **asdict(settings)}
    if (root / DONE).is_file() and json.loads((root / DONE).read_text())["settings"] == identity:
        return root / "manifest.csv"
    for name in ("slides", "masks", "patches"):
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / DONE).unlink(missing_ok=True)
    slides = plan(settings)
    jobs = [(slide, settings, root) for slide in slides]
    if workers <= 1:
        results = [make_slide(*job) for job in jobs]
    else:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_one_thread) as pool:
            results = list(pool.map(make_slide, *zip(*jobs, strict=True)))
    _write_csv(root / "manifest.csv", [row for row, _ in results])
    patches = [patch for _, found in results for patch in found]
    if patches:
        _write_csv(root / "patches.csv", patches)
    facts = {"settings": identity, "slides": [asdict(s) for s in slides], "patches": len(patches)}
    (root / DONE).write_text(json.dumps(facts, indent=1, allow_nan=False))
    return root / "manifest.csv"


def make_slide(slide: SlidePlan, settings: CohortSettings, root: Path) -> tuple[dict[str, str], list[dict[str, str]]]:
    """Paint, scan and write one slide with its mask and patches; returns its manifest row and its patches' rows."""
    picture, anatomy = render(slide, settings.size_um)
    hospital = slide.hospital
    wsi = f"slides/{slide.slide_id}{hospital.suffix}"
    partial = root / "slides" / f".{slide.slide_id}.partial"
    write_slide(partial, hospital, picture)
    os.replace(partial, root / wsi)
    mask = ""
    if hospital.suffix == ".svs":
        mask = f"masks/{slide.slide_id}.png"
        cells = (anatomy.tissue > 0) & (anatomy.fat <= 0)
        _save(root / mask, cells[::2, ::2].astype(np.uint8) * 255)
    row = {
        "slide_id": slide.slide_id,
        "wsi_path": wsi,
        "mask_path": mask,
        "organ": slide.organ,
        "site": hospital.name,
    }
    return row, _patches(slide, settings, picture, anatomy, root)


def render(slide: SlidePlan, size_um: float) -> tuple[Picture, Anatomy]:
    """The picture of a slide at its hospital's resolution `[n, n, 3]`, and its anatomy."""
    anatomy = grow(organ(slide.organ), slide.seed, size_um, tumour_share=slide.tumour_share, pieces=slide.pieces)
    painting, mpp = compose(anatomy, slide.seed), slide.hospital.mpp
    n, margin = int(size_um / mpp / 16) * 16, 8
    picture = np.empty((n, n, 3), np.uint8)
    for top in range(0, n, STRIP):
        height = min(STRIP, n - top)
        stains = paint(painting, mpp, top - margin, 0, height + 2 * margin, n)
        colours = scan(slide.hospital, stains, np.random.default_rng([slide.seed, 4, top]))
        picture[top : top + height] = colours[margin : margin + height]
    return picture, anatomy


def _patches(
    slide: SlidePlan, settings: CohortSettings, picture: Picture, anatomy: Anatomy, root: Path
) -> list[dict[str, str]]:
    """Write non-overlapping square patches with ≥ 90% in one zone, at one spacing for all hospitals."""
    from PIL import Image

    if not settings.patches_per_label:
        return []
    rng = np.random.default_rng([slide.seed, 5])
    fov = settings.patch_px * settings.patch_mpp
    cells = max(1, round(fov / STEP))
    rows = []
    for label in LABELS:
        share = _share(anatomy.zone == ZONES.index(label), cells)
        corners = _choose_apart(np.argwhere(share >= 0.9), cells, settings.patches_per_label, rng)
        for k, (y, x) in enumerate(corners * (STEP / slide.hospital.mpp)):
            size = round(fov / slide.hospital.mpp)
            crop = picture[round(y) : round(y) + size, round(x) : round(x) + size]
            side = (settings.patch_px, settings.patch_px)
            path = f"patches/{slide.slide_id}_{label}_{k:02d}.png"
            _save(root / path, np.asarray(Image.fromarray(crop).resize(side, Image.Resampling.BILINEAR)))
            where = {"medical_center": slide.hospital.name, "slide_id": slide.slide_id}
            rows.append({"image_path": path, "label": label, **where})
    return rows


def _share(zone: np.ndarray, cells: int) -> np.ndarray:
    """The share of the zone in every window of `cells` × `cells` inside the slide."""
    total = np.zeros((zone.shape[0] + 1, zone.shape[1] + 1))
    total[1:, 1:] = np.cumsum(np.cumsum(zone, 0), 1)
    inner = total[cells:, cells:] - total[:-cells, cells:] - total[cells:, :-cells] + total[:-cells, :-cells]
    return np.asarray(inner / cells**2)


def _choose_apart(corners: np.ndarray, cells: int, most: int, rng: np.random.Generator) -> np.ndarray:
    chosen: list[np.ndarray] = []
    for corner in corners[rng.permutation(len(corners))[:4000]]:
        if len(chosen) == most:
            break
        if all(np.abs(corner - other).max() >= cells for other in chosen):
            chosen.append(corner)
    return np.array(chosen).reshape(-1, 2)


def _one_thread() -> None:
    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"


def _save(path: Path, image: np.ndarray) -> None:
    from PIL import Image

    Image.fromarray(image).save(path, compress_level=3)


def _write_csv(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    with path.open("w", newline="") as f:
        writer = csv.DictWriter(f, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def main(arguments: Sequence[str]) -> int:
    """`key=value` arguments: output and the fields of CohortSettings."""
    values = dict(a.split("=", 1) if "=" in a else (a, "") for a in arguments)
    kinds = {name: type(value) for name, value in asdict(CohortSettings()).items()}
    output = values.pop("output", "demo_output/cohort")
    if unknown := sorted(set(values) - set(kinds)):
        raise UserError("unknown key", key=unknown[0], expected=["output", *kinds])
    try:
        settings = CohortSettings(**{k: kinds[k](v) for k, v in values.items()})
    except ValueError as error:
        raise error if isinstance(error, UserError) else UserError("not a number", found=values) from error
    print(generate(output, settings))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        sys.exit(2)
