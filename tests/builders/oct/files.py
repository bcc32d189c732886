"""A data set of small DICOM volumes with a manifest: a layered retina for each scan. Not here: scans without pixels
(builders.oct.scans), single files (builders.oct.opt_dicom)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tests.builders.oct.opt_dicom import Scan as Written
from tests.builders.oct.opt_dicom import build_dicom
from tests.builders.oct.retina import layered_retina
from tests.builders.oct.scans import Scan, cells_of, write_rows

SIZE = (8, 48, 64)
SPACING = (0.8, 0.04, 0.1)  # 6.4 × 1.92 × 6.4 mm
WORDS = (  # a grid of 4 × 4 × 4 tokens for them
    "data.image_size=[16,64,64]", "data.spacing_mm=[0.4,0.04,0.12]", "model.patch_size=[4,16,16]", "data.threads=1",
    "model.name=vit_micro",
)  # fmt: skip


def person_scans(persons: int, **facts) -> list[Scan]:
    """The right eye of each person."""
    return [Scan(str(p), size=SIZE, spacing_mm=SPACING, uid=f"1.2.{p}", **facts) for p in range(persons)]


def write_volumes(folder: Path, scans: Sequence[Scan], **written) -> str:
    """DICOM files of these scans with a manifest; its path. `written`: of tests.builders.oct.opt_dicom.Scan."""
    for seed, scan in enumerate(scans):
        path = folder / scan.path
        path.parent.mkdir(parents=True, exist_ok=True)
        facts = {"spacing_mm": scan.spacing_mm, "laterality": scan.header_eye} | written
        own = Written(offsets_mm=scan.offsets_mm, attributes={"SOPInstanceUID": scan.uid}, **facts)
        if scan.there:
            path.write_bytes(build_dicom(layered_retina(*scan.size, seed=seed), own))
    return write_rows(folder / "manifest.tsv", [cells_of(scan) for scan in scans])
