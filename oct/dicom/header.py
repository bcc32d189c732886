"""A DICOM file's header → `VolumeHeader`: what the file is, how its pixels are stored, and its geometry.

What a file is, its attributes decide and never its name. Not here: spacing (oct.dicom.geometry), pixels
(oct.dicom.frames), what a manifest says (oct.indexing.manifest).
"""

from __future__ import annotations

from collections.abc import Sequence

from pydicom.dataset import Dataset

from oct.dicom.attributes import LATERALITIES, read_count, read_text
from oct.dicom.codestream import read_codestream
from oct.dicom.file import DicomFile, open_dicom
from oct.dicom.geometry import ManifestSpacing, match_groups, read_geometry
from oct.dicom.groups import PER_FRAME, SHARED, Group, read_groups
from oct.dicom.pattern import scan_pattern
from oct.volume import VolumeHeader
from pathray.errors import UnreadableUnit

TOMOGRAPHY = "1.2.840.10008.5.1.4.1.1.77.1.5.4"  # Ophthalmic Tomography Image Storage: the only volume
NO_VOLUMES = {
    "1.2.840.10008.5.1.4.1.1.77.1.5.7": "en_face",
    "1.2.840.10008.5.1.4.1.1.77.1.5.8": "volume_analysis",
}
MODALITY = "OPT"
MOST_FRAMES = 100_000  # a NumberOfFrames above is damage


def read_header(data: bytes, path: str, manifest_spacing: ManifestSpacing | None = None) -> VolumeHeader:
    """The header of a file's content, which may be cut anywhere after the start of its pixel data element.

    manifest_spacing: (dz, dy, dx) in mm, for axes of which the file says nothing. UnreadableUnit: `empty`, `not_dicom`,
    `truncated`, `corrupt`, or `header` for a volume whose pixels cannot be described.
    """
    return describe(open_dicom(data, path), manifest_spacing)


def describe(file: DicomFile, manifest_spacing: ManifestSpacing | None = None) -> VolumeHeader:
    """The header of an opened file; see `read_header`. An excluded file may have 0 rows and columns."""
    dataset = file.dataset
    sop_class = read_text(dataset, "SOPClassUID")
    _check_complete(file, sop_class)
    exclusion = _excluded_by_class(sop_class, read_text(dataset, "Modality").upper())
    if not exclusion:
        _check_pixels(dataset, file.path)
    shared, groups = next(iter(read_groups(dataset, SHARED)), Group()), read_groups(dataset, PER_FRAME)
    frames = _count_frames(dataset, groups, file.path, bool(exclusion))
    if not exclusion:
        exclusion = _excluded_by_scan(groups, frames)
    laterality, notes = _read_laterality(dataset, shared, groups)
    signed, bits, more = _read_samples(file)
    return VolumeHeader(
        sop_class_uid=sop_class,
        sop_instance_uid=read_text(dataset, "SOPInstanceUID"),
        transfer_syntax_uid=file.syntax_uid,
        frames=frames,
        rows=read_count(dataset, "Rows") or 0,
        columns=read_count(dataset, "Columns") or 0,
        bits_stored=bits,
        signed=signed,
        manufacturer=read_text(dataset, "Manufacturer"),
        model=read_text(dataset, "ManufacturerModelName"),
        laterality=laterality,
        geometry=read_geometry(dataset, shared, groups, frames, read_count(dataset, "Columns") or 0, manifest_spacing),
        exclusion=exclusion,
        notes=tuple(notes + more + _note_inversion(dataset)),
    )


def _check_complete(file: DicomFile, sop_class: str) -> None:
    """UnreadableUnit `truncated` for a volume without pixel data: its header may have been cut anywhere."""
    written = read_text(file.dataset.file_meta, "MediaStorageSOPClassUID")
    if file.pixels is None and (TOMOGRAPHY in (sop_class, written) or sop_class != written):
        raise UnreadableUnit("truncated", file.path, "the file ends before its pixel data")


def _excluded_by_class(sop_class: str, modality: str) -> str:
    if sop_class in NO_VOLUMES:
        return NO_VOLUMES[sop_class]
    if modality and modality != MODALITY:
        return "wrong_modality"
    return "" if sop_class == TOMOGRAPHY else "other_sop_class"


def _excluded_by_scan(groups: Sequence[Group], frames: int) -> str:
    pattern = scan_pattern(match_groups(groups, frames))
    if pattern != "raster":
        return pattern
    return (
        "single_frame" if frames == 1 and len(groups) <= 1 else ""
    )  # else NumberOfFrames is wrong, which its pixels show


def _check_pixels(dataset: Dataset, path: str) -> None:
    """UnreadableUnit `header` where the attributes that describe pixels cannot be those of a B-scan."""
    rows, columns, bits = (read_count(dataset, k) for k in ("Rows", "Columns", "BitsAllocated"))
    if not rows or not columns or rows < 0 or columns < 0:
        raise UnreadableUnit("header", path, f"Rows and Columns: found {rows} and {columns}, expected 1 or more")
    if bits not in (8, 16):
        raise UnreadableUnit("header", path, f"BitsAllocated: found {bits}, expected 8 or 16")
    stored = read_count(dataset, "BitsStored")
    if stored is not None and not 0 < stored <= bits:
        raise UnreadableUnit("header", path, f"BitsStored: found {stored}, expected 1 to {bits}")
    samples = read_count(dataset, "SamplesPerPixel")
    if samples not in (1, None):
        raise UnreadableUnit("header", path, f"SamplesPerPixel: found {samples}, expected 1")


def _count_frames(dataset: Dataset, groups: Sequence[Group], path: str, excluded: bool) -> int:
    """NumberOfFrames (0028,0008); where it is absent, one per item of the per-frame groups, or 1."""
    if not read_text(dataset, "NumberOfFrames"):
        return max(1, len(groups))
    frames = read_count(dataset, "NumberOfFrames")
    if frames is not None and 0 < frames <= MOST_FRAMES:
        return frames
    if excluded:
        return 1
    raise UnreadableUnit("header", path, f"NumberOfFrames: found {frames}, expected 1 to {MOST_FRAMES:,}")


def _read_laterality(dataset: Dataset, shared: Group, groups: Sequence[Group]) -> tuple[str, list[str]]:
    """R or L if the file says one eye and only one; else empty, with a note where it contradicts itself."""
    found = {
        read_text(dataset, "ImageLaterality"),
        read_text(dataset, "Laterality"),
        shared.eye,
        groups[0].eye if groups else "",
    }
    eyes = sorted({text.upper() for text in found} & set(LATERALITIES))
    if len(eyes) > 1:
        return "", ["the file says both R and L: laterality not known"]
    return (eyes[0] if eyes else ""), []


def _read_samples(file: DicomFile) -> tuple[bool, int, list[str]]:
    """Whether pixels are signed, their bits, and notes. A codestream that says otherwise than PixelRepresentation
    (0028,0103), or has fewer bits than BitsStored (0028,0101), counts."""
    signed = read_count(file.dataset, "PixelRepresentation") == 1
    bits = read_count(file.dataset, "BitsStored") or read_count(file.dataset, "BitsAllocated") or 0
    codestream, notes = read_codestream(file), []
    if codestream is not None and codestream.signed != signed:
        stated, found = ("signed", "unsigned") if signed else ("unsigned", "signed")
        notes.append(f"PixelRepresentation says {stated}, the codestream {found}: the codestream counts")
        signed = codestream.signed
    if codestream is not None and codestream.bits < bits:
        notes.append(f"BitsStored is {bits}, the codestream has {codestream.bits} bits: the codestream counts")
        bits = codestream.bits
    if signed:
        notes.append("signed pixels: read as value + 2^(bits - 1)")
    return signed, bits, notes


def _note_inversion(dataset: Dataset) -> list[str]:
    if read_text(dataset, "PhotometricInterpretation").upper() == "MONOCHROME1":
        return ["MONOCHROME1: inverted, so that bright is high"]
    return []
