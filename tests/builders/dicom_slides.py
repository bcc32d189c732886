"""A small DICOM whole-slide image: one instance per level, tiled in full, JPEG baseline frames."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import imagecodecs
import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import JPEGBaseline8Bit

from tests.builders.slides import reduced

VL_WHOLE_SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"
SERIES = "1.2.826.0.1.3680043.8.498.7"


def write_dicom_slide(
    folder: str | os.PathLike[str], image: np.ndarray, *, mpp: float = 0.5, downsamples: Sequence[int] = (1, 2, 4)
) -> Path:
    """The folder, holding one ``level-N.dcm`` per level."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for i, down in enumerate(downsamples):
        level = image if down == 1 else reduced(image, down)
        _instance(i, level, mpp * down).save_as(folder / f"level-{i}.dcm", enforce_file_format=True)
    return folder


def _instance(number: int, level: np.ndarray, mpp: float, tile: int = 256) -> Dataset:
    frames, (h, w) = _frames(level, tile), level.shape[:2]
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = VL_WHOLE_SLIDE
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = f"{SERIES}.3.{number}"
    data.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    data.Modality, data.SeriesInstanceUID, data.StudyInstanceUID = "SM", f"{SERIES}.1", f"{SERIES}.2"
    kind = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"] if number == 0 else ["DERIVED", "PRIMARY", "VOLUME", "RESAMPLED"]
    data.ImageType = kind
    data.Rows = data.Columns = tile
    data.TotalPixelMatrixRows, data.TotalPixelMatrixColumns, data.NumberOfFrames = h, w, len(frames)
    data.SamplesPerPixel, data.PlanarConfiguration, data.PhotometricInterpretation = 3, 0, "YBR_FULL_422"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 8, 8, 7, 0
    data.DimensionOrganizationType, data.NumberOfOpticalPaths, data.TotalPixelMatrixFocalPlanes = "TILED_FULL", 1, 1
    measures, shared, path = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [mpp / 1000, mpp / 1000], 0.001
    shared.PixelMeasuresSequence = [measures]
    path.OpticalPathIdentifier = "0"
    data.SharedFunctionalGroupsSequence, data.OpticalPathSequence = [shared], [path]
    data.PixelData = encapsulate(frames)
    data["PixelData"].VR = "OB"
    return data


def _frames(level: np.ndarray, tile: int) -> list[bytes]:
    frames = []
    for y in range(0, level.shape[0], tile):
        for x in range(0, level.shape[1], tile):
            crop = level[y : y + tile, x : x + tile]
            frame = np.full((tile, tile, 3), 255, np.uint8)
            frame[: crop.shape[0], : crop.shape[1]] = crop
            frames.append(imagecodecs.jpeg8_encode(frame, level=90, subsampling="420"))
    return frames
