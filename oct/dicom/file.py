"""Opens a DICOM file that is in memory: its data set without pixels, and where its pixels are.

The pixels are not copied: `DicomFile.pixels` is a view of the file's bytes. Only a deflated file is inflated as a
whole. Not here: what the attributes mean (oct.dicom.header), decoding (oct.dicom.frames).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from io import BytesIO

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import DeflatedExplicitVRLittleEndian

from pathray.errors import UnreadableUnit

PIXEL_DATA = (0x7FE0, 0x0010)
UNDEFINED = 0xFFFFFFFF  # the length of encapsulated pixel data


@dataclass(frozen=True)
class DicomFile:
    """A data set without its pixel data, and a view of the pixel data's value as it is stored.

    pixels: None where the file has none. declared_bytes: the value's length as stated; None if encapsulated. vr: of the
    pixel data, OB or OW.
    """

    path: str
    dataset: Dataset
    syntax_uid: str
    big_endian: bool
    pixels: memoryview | None = None
    declared_bytes: int | None = None
    vr: str = "OW"

    @property
    def is_encapsulated(self) -> bool:
        """Whether the pixels are compressed frames in fragments."""
        return self.pixels is not None and self.declared_bytes is None


def open_dicom(data: bytes, path: str) -> DicomFile:
    """The file with content `data`, which may also end inside the pixels. `path` is for error messages.

    UnreadableUnit: `empty`, `not_dicom`, `truncated` or `corrupt`.
    """
    if not data:
        raise UnreadableUnit("empty", path, "the file has no bytes")
    stream = BytesIO(data)  # shares the bytes
    dataset = _read_dataset(stream, path)
    syntax = str(dataset.file_meta.get("TransferSyntaxUID", "") or "")
    if syntax == DeflatedExplicitVRLittleEndian:
        return _open_deflated(data, path, syntax)
    implicit, little = dataset.original_encoding
    order = "<" if little is not False else ">"
    found = _find_pixels(memoryview(data), stream.tell(), bool(implicit), order, path)
    return DicomFile(path, dataset, syntax, order == ">", *found)


def _read_dataset(stream: BytesIO, path: str, with_pixels: bool = False) -> Dataset:
    """The data set, with the stream at its pixel data. Values are checked when they are used, not here."""
    try:
        dataset = dcmread(stream, stop_before_pixels=not with_pixels)
    except InvalidDicomError:
        raise UnreadableUnit("not_dicom", path, "there is no DICM prefix after the preamble") from None
    except EOFError as e:
        raise UnreadableUnit("truncated", path, str(e) or "the file ends inside its header") from e
    except MemoryError:
        raise
    except Exception as e:  # pydicom raises its own kinds, struct.error, zlib.error, OSError …
        reason = "truncated" if _is_cut(e) else "corrupt"
        raise UnreadableUnit(reason, path, f"{type(e).__name__}: {e}") from e
    if not len(dataset):
        raise UnreadableUnit("truncated", path, "the file ends before its data set")
    return dataset


def _is_cut(e: Exception) -> bool:
    text = str(e).lower()
    return any(word in text for word in ("unexpected end", "incomplete", "truncated", "requires a buffer"))


def _open_deflated(data: bytes, path: str, syntax: str) -> DicomFile:
    """A deflated file is read with its pixels: the inflated data set is another buffer than the file."""
    dataset = _read_dataset(BytesIO(data), path, with_pixels=True)
    if PIXEL_DATA not in dataset:
        return DicomFile(path, dataset, syntax, False)
    element = dataset.get_item(PIXEL_DATA)
    value = element.value if element is not None else b""
    assert isinstance(value, bytes)
    del dataset[PIXEL_DATA]
    return DicomFile(path, dataset, syntax, False, memoryview(value), len(value))


def _find_pixels(
    data: memoryview, at: int, implicit: bool, order: str, path: str
) -> tuple[memoryview | None, int | None, str]:
    """Value, declared length and VR of the pixel data whose element begins at byte `at`."""
    head = data[at : at + 12]
    if len(head) < 8 or struct.unpack_from(f"{order}HH", head) != PIXEL_DATA:
        return None, None, "OW"
    if implicit:
        vr, size, begin = "OW", struct.unpack_from(f"{order}L", head, 4)[0], at + 8
    elif len(head) < 12:
        raise UnreadableUnit("truncated", path, "the file ends before its pixels")
    else:
        vr, size, begin = bytes(head[4:6]).decode("latin-1"), struct.unpack_from(f"{order}L", head, 8)[0], at + 12
    return data[begin:], None if size == UNDEFINED else size, vr
