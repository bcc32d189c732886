"""OPT DICOM files with every trait that real ones have, and every fault. Not here: the pixels (builders.oct.retina)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

import numpy as np
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate

from tests.builders.oct.codecs import encode_frame

TOMOGRAPHY = "1.2.840.10008.5.1.4.1.1.77.1.5.4"
EN_FACE = "1.2.840.10008.5.1.4.1.1.77.1.5.7"
VOLUME_ANALYSIS = "1.2.840.10008.5.1.4.1.1.77.1.5.8"
ROOT = "1.2.826.0.1.3680043.8.498.9"
PLAIN = (
    uid.ExplicitVRLittleEndian,
    uid.ImplicitVRLittleEndian,
    uid.ExplicitVRBigEndian,
    uid.DeflatedExplicitVRLittleEndian,
)
LINE_PX = 400.0  # the length of a scan line in the fundus image


@dataclass(frozen=True)
class Scan:
    """How a volume is written.

    stored: which frame of the volume is stored at each place of the file. places: of positions, "plane" (in mm),
    "locations" (scan lines in the fundus image) or "". measures: where PixelSpacing is, "shared", "frame", "root" or
    "". attributes: set at the root at the end, as they are.
    """

    spacing_mm: tuple[float, float, float] = (0.05, 0.004, 0.012)
    offsets_mm: Sequence[float] | None = None
    stored: Sequence[int] | None = None
    reversed_normal: bool = False
    places: str = "plane"
    measures: str = "shared"
    pixel_spacing: Any = None  # instead of (dy, dx)
    between_slices: str = ""  # "shared" or "root"
    pattern: str = "raster"  # or "circular" (NONLINEAR), "closed" (lines that go round), "radial"
    syntax: str = uid.ExplicitVRLittleEndian
    bits_stored: int | None = None
    signed: bool = False
    stated_frames: int | None = None
    fragments: int = 1
    with_table: bool = True
    padding: bytes = b""  # after each compressed frame
    cut: int = 0  # bytes missing at the end of the file
    vr: str = "OW"
    sop_class: str = TOMOGRAPHY
    modality: str = "OPT"
    laterality: str = "R"
    frame_laterality: str = ""
    attributes: dict[str, Any] = field(default_factory=dict)


def build_dicom(volume: np.ndarray, scan: Scan | None = None) -> bytes:
    """The file of `volume` `[frames, rows, columns]`, whose frames are in the order of the slow axis."""
    scan = scan or Scan()
    stored = list(scan.stored if scan.stored is not None else range(len(volume)))
    data = _root(volume, scan)
    data.SharedFunctionalGroupsSequence = [_shared(scan)]
    data.PerFrameFunctionalGroupsSequence = [_frame(i, n, volume.shape, scan) for n, i in enumerate(stored)]
    _set_pixels(data, volume[stored], scan)
    for keyword, value in scan.attributes.items():
        setattr(data, keyword, value)
    stream = BytesIO()
    data.save_as(stream, enforce_file_format=True)
    content = stream.getvalue()
    return content[: len(content) - scan.cut]


def _root(volume: np.ndarray, scan: Scan) -> Dataset:
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = scan.sop_class
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = f"{ROOT}.1"
    data.file_meta.TransferSyntaxUID = scan.syntax
    data.StudyInstanceUID, data.SeriesInstanceUID = f"{ROOT}.2", f"{ROOT}.3"
    data.Modality, data.Manufacturer, data.ManufacturerModelName = scan.modality, "Generated", "Layered"
    if scan.laterality:
        data.ImageLaterality = scan.laterality
    bits = 8 * volume.dtype.itemsize
    stated = len(volume) if scan.stated_frames is None else scan.stated_frames
    data.NumberOfFrames, data.Rows, data.Columns = stated, *volume.shape[1:]
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored = bits, scan.bits_stored or bits
    data.HighBit, data.PixelRepresentation = data.BitsStored - 1, int(scan.signed)
    if scan.measures == "root":
        data.PixelSpacing = _pixel_spacing(scan)
    if scan.between_slices == "root":
        data.SpacingBetweenSlices = scan.spacing_mm[0]
    return data


def _shared(scan: Scan) -> Dataset:
    shared, orientation = Dataset(), Dataset()
    if scan.places == "plane":
        column = -1.0 if scan.reversed_normal else 1.0
        orientation.ImageOrientationPatient = [1.0, 0.0, 0.0, 0.0, column, 0.0]
        shared.PlaneOrientationSequence = [orientation]
    if scan.measures == "shared" or scan.between_slices == "shared":
        measures = _measures(scan) if scan.measures == "shared" else Dataset()
        if scan.between_slices == "shared":
            measures.SpacingBetweenSlices = scan.spacing_mm[0]
        shared.PixelMeasuresSequence = [measures]
    return shared


def _frame(i: int, number: int, shape: tuple[int, ...], scan: Scan) -> Dataset:
    """The functional groups of frame `i` of the volume, stored as the file's `number`-th."""
    frame, content = Dataset(), Dataset()
    content.StackID, content.DimensionIndexValues = "1", [1, number + 1]
    frame.FrameContentSequence = [content]
    offset = i * scan.spacing_mm[0] if scan.offsets_mm is None else scan.offsets_mm[i]
    if scan.places == "plane":
        position = Dataset()
        position.ImagePositionPatient = [-3.0, 1.5, round(-offset if scan.reversed_normal else offset, 9)]
        frame.PlanePositionSequence = [position]
    if scan.places == "locations":
        frame.OphthalmicFrameLocationSequence = [_location(i, offset, shape, scan)]
    if scan.measures == "frame":
        frame.PixelMeasuresSequence = [_measures(scan)]
    if scan.frame_laterality:
        anatomy = Dataset()
        anatomy.FrameLaterality = scan.frame_laterality
        frame.FrameAnatomySequence = [anatomy]
    return frame


def _location(i: int, offset_mm: float, shape: tuple[int, ...], scan: Scan) -> Dataset:
    """The scan line in a fundus image where `LINE_PX` pixels are the width of a B-scan."""
    location = Dataset()
    location.OphthalmicImageOrientation = "NONLINEAR" if scan.pattern == "circular" else "LINEAR"
    row = 40 + offset_mm * LINE_PX / (shape[2] * scan.spacing_mm[2])
    turn = np.pi * i / shape[0] if scan.pattern == "radial" else 0.0
    along = np.array([np.sin(turn), np.cos(turn)]) * LINE_PX / 2
    middle = np.array([300.0 if scan.pattern == "radial" else row, 300.0])
    line = np.array([middle - along, middle + along])
    if scan.pattern == "closed":
        angles = np.linspace(0, 2 * np.pi, 9)
        line = 300 + 50 * np.stack([np.sin(angles), np.cos(angles)], axis=1)
    location.ReferenceCoordinates = line.ravel().tolist()
    return location


def _measures(scan: Scan) -> Dataset:
    measures = Dataset()
    measures.PixelSpacing, measures.SliceThickness = _pixel_spacing(scan), 0.001
    return measures


def _pixel_spacing(scan: Scan) -> Any:
    return list(scan.spacing_mm[1:]) if scan.pixel_spacing is None else scan.pixel_spacing


def _set_pixels(data: Dataset, frames: np.ndarray, scan: Scan) -> None:
    if scan.syntax in PLAIN:
        big = scan.syntax == uid.ExplicitVRBigEndian
        value = frames.astype(frames.dtype.newbyteorder(">" if big else "<")).tobytes()
        value += b"\0" * (len(value) % 2)
        if big and scan.vr == "OW" and frames.dtype.itemsize == 1:
            value = np.frombuffer(value, np.uint16).byteswap().tobytes()
        data.PixelData = value
        data["PixelData"].VR = scan.vr
        return
    coded = [encode_frame(frame, scan.syntax) + scan.padding for frame in frames]
    data.PixelData = encapsulate(coded, fragments_per_frame=scan.fragments, has_bot=scan.with_table)
    data["PixelData"].VR = "OB"
    data["PixelData"].is_undefined_length = True
