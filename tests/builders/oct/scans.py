"""A data set of OCT scans as AI-READI lays it out, whose files are JSON instead of DICOM; and the reader of them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from oct.indexing.index import index_volumes, mark_duplicates
from oct.indexing.index_file import VolumeIndex, make_index, write_index
from oct.indexing.manifest import COLUMNS, read_manifest
from oct.volume import Geometry, VolumeHeader
from pathray.errors import UnreadableUnit

NAMES = {
    "topcon_triton": ("Topcon", "Triton"),
    "topcon_maestro2": ("Topcon", "Maestro2"),
    "zeiss_cirrus": ("Zeiss", "Cirrus"),
    "heidelberg_spectralis": ("Heidelberg", "Spectralis"),
}
OTHERS = ("imaging", "reference_instance_uid", "reference_filepath")


@dataclass(frozen=True)
class Scan:
    """A scan; `header_eye` is what its header says. A scan that is not `there` is in the manifest only."""

    person: str
    eye: str = "R"
    device: str = "topcon_triton"
    region: str = "Macula"
    size: tuple[int, int, int] = (8, 16, 24)
    spacing_mm: tuple[float, float, float] = (0.1, 0.01, 0.02)
    sources: tuple[str, str, str] = ("positions", "shared_measures", "shared_measures")
    exclusion: str = ""
    header_eye: str = "R"
    uid: str = ""
    order: tuple[int, ...] = ()
    offsets_mm: tuple[float, ...] | None = None
    name: str = ""
    there: bool = True

    @property
    def path(self) -> str:
        name = self.name or f"{self.person}_{self.eye.lower()}_{self.region.split(',')[0].lower().replace(' ', '_')}"
        return f"structural_oct/{self.device}/{self.person}/{name}.dcm"


def both_eyes(person: str, **facts) -> list[Scan]:
    return [Scan(person, eye, header_eye=eye, **facts) for eye in "RL"]


def cells_of(scan: Scan) -> dict[str, str]:
    """The row of a manifest."""
    manufacturer, model = NAMES.get(scan.device, ("Other", "One"))
    frames, rows, columns = scan.size
    values = (manufacturer, model, scan.region, scan.eye, rows, columns, frames, "[0.01, 0.02]", "0.1")
    uid = scan.uid or f"1.2.{scan.path.encode().hex()}"
    named = dict(zip(COLUMNS, (*values, uid, f"/{scan.path}"), strict=True))
    return {"person_id": scan.person, **{k: str(v) for k, v in named.items()}, **dict.fromkeys(OTHERS, "Not reported")}


def write_rows(path: Path, rows: Sequence[dict[str, str]]) -> str:
    """A manifest.tsv of these cells."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[-1]), restval="Not reported", delimiter="\t", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text.getvalue())
    return str(path)


def write_scans(folder: Path, scans: Sequence[Scan]) -> str:
    """The files, and a manifest.tsv next to `structural_oct`; its path."""
    rows = [cells_of(scan) for scan in scans]
    for scan, row in zip(scans, rows, strict=True):
        if scan.there:
            path = folder / scan.path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({**asdict(scan), "uid": row["sop_instance_uid"]}))
    return write_rows(folder / "manifest.tsv", rows)


def read_scan(path: str, manifest_spacing) -> tuple[VolumeHeader, int]:
    """In place of oct.indexing.head.read_file_header; UnreadableUnit for what is not JSON."""
    text = Path(path).read_text()
    try:
        f = json.loads(text)
    except ValueError:
        raise UnreadableUnit("truncated", path, "ends in its header") from None
    frames, rows, columns = f["size"]
    order = tuple(f["order"] or range(frames))
    offsets = None if f["offsets_mm"] is None else tuple(f["offsets_mm"])
    geometry = Geometry(tuple(f["spacing_mm"]), tuple(f["sources"]), order, offsets)
    header = VolumeHeader(
        "1.2.840.10008.5.1.4.1.1.77.1.5.4", f["uid"], "1.2.840.10008.1.2.1", frames, rows, columns, 8, False,
        "", "", f["header_eye"], geometry, f["exclusion"],
    )  # fmt: skip
    return header, len(text)


def index_scans(folder: Path, scans: Sequence[Scan]) -> VolumeIndex:
    """The index of these scans, in `folder`/oct.parquet."""
    manifest = read_manifest(write_scans(folder, scans))
    rows = mark_duplicates(list(index_volumes(manifest, read_header=read_scan)))
    index = make_index(str(folder / "oct.parquet"), manifest.root, rows)
    write_index(index)
    return index
