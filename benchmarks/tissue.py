"""Real H&E slides and patches that the benchmarks of learning train on and probe: read in place, never copied.

Patches are trained on as one-tile slides. Not here: training and probes (benchmarks/learning_ijepath.py).
"""

from __future__ import annotations

import csv
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from ijepath.config import RunConfig
from ijepath.indexing.anchors import slide_anchors
from ijepath.indexing.index import index_slide
from ijepath.indexing.manifest import ManifestRow, read_manifest
from ijepath.plan import COLUMNS
from ijepath.profile import Profile
from pathray.data.plan import Plan, PlanWriter

PATCH_MPP = 0.5  # taken as the patches' spacing


@dataclass(frozen=True)
class Patches:
    """Labelled evaluation images `[N, 224, 224, 3]` uint8, and which of them are for testing."""

    images: np.ndarray
    labels: np.ndarray
    test: np.ndarray


def colour_features(images: np.ndarray) -> np.ndarray:
    """Mean and deviation per colour `[N, 6]`."""
    values = images.reshape(len(images), -1, 3).astype(np.float32) / 255
    return np.concatenate([values.mean(1), values.std(1)], axis=1)


def crc5(root: Path, part: str = "all") -> Patches:
    rows = table(root / "patches" / "crc5" / "index.tsv")
    if part not in ("all", "train"):
        raise SystemExit(f"part: found {part}, expected all or train")
    rows = [row for row in rows if part == "all" or row["split"] != "test"]
    images = np.stack([pixels(root / "patches" / row["path"]) for row in rows])
    return Patches(images, np.array([r["class"] for r in rows]), np.array([r["split"] == "test" for r in rows]))


def build(root: Path, folder: Path, config: RunConfig, manifest: str | None = None) -> Plan:
    """A plan of anchors on the slides and on patches, which are written as one-tile slides into `folder`; or on the
    slides of `manifest` alone."""
    data = config.data
    profile = Profile(**{f.name: getattr(data, f.name) for f in fields(Profile)})
    sources: list[dict[str, Any]] = []
    units: list[np.ndarray] = []
    for slide in read_manifest(manifest).rows if manifest else slides_of(root):
        row = index_slide(slide)
        anchors = slide_anchors(row, profile)
        assert len(anchors), (slide.wsi_path, anchors.reason, anchors.detail)
        units.append(np.stack([anchors.center_x, anchors.center_y], axis=1))
        sources.append(source(slide.wsi_path, slide.mask_path, row["wsi_level0_spacing_mpp"]))
    for number, path in enumerate([] if manifest else patch_files(root)):
        image, name = pixels(path), folder / f"{number}.tif"
        save(name, image)
        save(folder / f"{image.shape[0]}_mask.tif", np.full(image.shape[:2], 255, np.uint8))
        half = profile.context_size_level0(PATCH_MPP) // 2
        places = np.unique(np.linspace(half, image.shape[0] - half, 3).astype(int))
        units.append(np.stack(np.meshgrid(places, places), axis=-1).reshape(-1, 2))
        sources.append(source(str(name), str(folder / f"{image.shape[0]}_mask.tif"), PATCH_MPP))
    total = sum(len(u) for u in units)
    meta = {"strata": [{"name": "all", "start": 0, "rows": total}]}
    with PlanWriter(folder / "plan", COLUMNS, pa.Table.from_pylist(sources), meta) as writer:
        for number, xy in enumerate(units):
            writer.append({"source": np.full(len(xy), number), "x": xy[:, 0], "y": xy[:, 1]})
    print(f"{total} anchors on {len(sources)} slides and patches", flush=True)
    return Plan.open(folder / "plan")


def slides_of(root: Path) -> list[ManifestRow]:
    paths = sorted((root / "wsi").glob("*.svs"))
    return [ManifestRow(0, p.stem, str(p.resolve()), "", None if "CMU" in p.stem else PATCH_MPP) for p in paths]


def patch_files(root: Path) -> list[Path]:
    seen = [r["path"] for r in table(root / "patches" / "crc5" / "index.tsv") if r["split"] != "test"]
    seen += [r["path"] for r in table(root / "patches" / "tcga_sites" / "index.tsv")]
    return [root / "patches" / path for path in seen]


def source(wsi_path: str, mask_path: str, mpp: float) -> dict[str, Any]:
    return {"wsi_path": wsi_path, "mask_path": mask_path, "wsi_level0_spacing_mpp": float(mpp)}


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as f:
        return list(csv.DictReader(f, delimiter="\t"))


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def save(path: Path, image: np.ndarray) -> None:
    import tifffile

    side = -(-image.shape[0] // 16) * 16
    photometric = "rgb" if image.ndim == 3 else "minisblack"
    tifffile.imwrite(path, image, tile=(side, side), photometric=photometric)
