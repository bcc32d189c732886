"""A small labelled data set: DICOM volumes of persons with both eyes, their index, tables of labels, an encoder.

A person is a case when the bright band in depth is thick; a number is the band's thickness.
"""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from oct.config import RunConfig
from oct.indexing.index import index_volumes, mark_duplicates
from oct.indexing.index_file import make_index, write_index
from oct.indexing.manifest import read_manifest
from oct.model import build_encoder
from oct.sections import DataConfig, ModelConfig
from oct.settings import preprocessing
from pathray.data.order import rng
from pathray.store.artifact import Encoder, EncoderArtifact
from pathray.store.committed import committed_dir
from tests.builders.oct.opt_dicom import Scan as Written
from tests.builders.oct.opt_dicom import build_dicom
from tests.builders.oct.scans import Scan, both_eyes, cells_of, write_rows

SPACING_MM = (0.2, 0.02, 0.06)
SIZE = [8, 32, 32]
LABELS, NUMBERS, OF_VOLUMES = "labels.csv", "numbers.csv", "of_volumes.csv"


def small_run(seed: int = 42) -> RunConfig:
    """The pretraining that the encoder would be of."""
    data = DataConfig(image_size=SIZE, spacing_mm=list(SPACING_MM), seed=seed)
    return RunConfig(data=data, model=ModelConfig(name="vit_micro", patch_size=[4, 8, 8]))


def write_oct_encoder(folder: Path, seed: int = 42, images_seen: int = 0, **changes) -> str:
    """A narrow encoder with random weights as a pretraining exports it; `changes` of its preprocessing."""
    torch.manual_seed(seed)
    config = small_run(seed)
    given = {**preprocessing(config), **changes}
    provenance = {"images_seen": images_seen}
    EncoderArtifact.save(str(folder), build_encoder(config), preprocessing=given, science="oct", provenance=provenance)
    return str(folder)


def thickness(person: int) -> float:
    """Of the band, as a part of the rows: thick for odd persons."""
    return 0.2 + 0.3 * (person % 2) + 0.02 * (person % 5)


def band_volume(person: int, eye: int, shape: tuple[int, int, int] = (9, 32, 32)) -> np.ndarray:
    """uint8 `[frames, rows, columns]`."""
    g = rng(0, "labelled", 2 * person + eye)
    rows = np.arange(shape[1])[None, :, None] / shape[1] - g.uniform(0.1, 0.3)
    band = (rows >= 0) & (rows < thickness(person))
    return np.clip(30 + 150 * band + g.normal(0, 10, shape), 0, 255).astype(np.uint8)


def write_labelled(folder: Path, persons: int = 12, broken: tuple[int, ...] = ()) -> str:
    """DICOM files, index and tables of labels in `folder`; the index. Files of the persons `broken` are cut short after
    they were indexed."""
    scans = [scan for p in range(persons) for scan in both_eyes(f"{p:02d}", size=(9, 32, 32))]
    rows = []
    for n, scan in enumerate(scans):
        scan = replace(scan, uid=f"1.2.{n}")
        path = folder / scan.path
        path.parent.mkdir(parents=True, exist_ok=True)
        written = Written(spacing_mm=SPACING_MM, laterality=scan.header_eye, attributes={"SOPInstanceUID": scan.uid})
        path.write_bytes(build_dicom(band_volume(n // 2, n % 2), written))
        rows.append(cells_of(scan))
    manifest = read_manifest(write_rows(folder / "manifest.tsv", rows))
    index = make_index(str(folder / "volumes.parquet"), manifest.root, mark_duplicates(list(index_volumes(manifest))))
    write_index(index)
    assert index.accepted.num_rows == 2 * persons, str(index)
    for p in broken:
        for scan in scans[2 * p : 2 * p + 2]:
            (folder / scan.path).write_bytes((folder / scan.path).read_bytes()[:-4000])
    _write_tables(folder, scans)
    return index.path


def _write_tables(folder: Path, scans: list[Scan]) -> None:
    people = sorted({scan.person for scan in scans})
    kind = {p: ("thin", "thick")[int(p) % 2] for p in people}
    write_table(folder / LABELS, [("person_id", "label"), *((p, kind[p]) for p in people)])
    write_table(folder / NUMBERS, [("person_id", "label"), *((p, f"{thickness(int(p)):.3f}") for p in people)])
    write_table(folder / OF_VOLUMES, [("path", "label"), *((f"/{s.path}", kind[s.person]) for s in scans)])


def write_table(path: Path, rows) -> str:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return str(path)


def write_oct_run(folder: Path, seen: tuple[int, ...], final: bool = True) -> str:
    """A run's folder with a snapshot for each number of volumes seen; the last is the final encoder, too."""
    for images in seen:
        torch.manual_seed(images)
        config = small_run()
        vit = build_encoder(config)
        encoder = Encoder(vit, preprocessing(config), "oct", {})
        with committed_dir(str(folder / "checkpoints"), f"oct-img{images}", {"images_seen": images}) as directory:
            encoder.write(directory, "encoder", vit.state_dict(), {"images_seen": images})
        if final and images == max(seen):
            encoder.save(str(folder / "encoder"), {"images_seen": images})
    return str(folder)
