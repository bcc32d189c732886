"""Volumes of two devices of the same persons: one is dark on one side. A person is a case when the band is thick."""

from __future__ import annotations

from pathlib import Path

from oct.indexing.index import index_volumes, mark_duplicates
from oct.indexing.index_file import make_index, write_index
from oct.indexing.manifest import read_manifest
from tests.builders.oct.labelled import LABELS, SPACING_MM, band_volume, write_table
from tests.builders.oct.opt_dicom import Scan as Written
from tests.builders.oct.opt_dicom import build_dicom
from tests.builders.oct.scans import Scan, cells_of, write_rows

DEVICES = ("topcon_triton", "zeiss_cirrus")
SHAPE = (9, 32, 32)


def write_two_devices(folder: Path, persons: int = 8, gap: float = 1.0) -> str:
    """DICOM files, an index and a table of labels in `folder`; the index. gap: how much the devices differ."""
    rows = []
    for n in range(2 * persons):
        person, device = n // 2, n % 2
        scan = Scan(
            f"{person:02d}",
            device=DEVICES[device],
            size=SHAPE,
            uid=f"1.2.{n}",
            region="Macula, 6 x 6"[: 6 + 7 * device],
        )
        volume = band_volume(person, device)
        volume[:, :, : round(20 * gap * device)] = 0
        path = folder / scan.path
        path.parent.mkdir(parents=True, exist_ok=True)
        written = Written(spacing_mm=SPACING_MM, laterality="R", attributes={"SOPInstanceUID": scan.uid})
        path.write_bytes(build_dicom(volume, written))
        rows.append(cells_of(scan))
    manifest = read_manifest(write_rows(folder / "manifest.tsv", rows))
    index = make_index(str(folder / "volumes.parquet"), manifest.root, mark_duplicates(list(index_volumes(manifest))))
    write_index(index)
    kinds = [(f"{p:02d}", ("thin", "thick")[p % 2]) for p in range(persons)]
    write_table(folder / LABELS, [("person_id", "label"), *kinds])
    return index.path
