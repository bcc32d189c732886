"""What the functional groups of frames say of place, spacing and eye: each group is read once, as plain values.

A volume has hundreds of them, and pydicom takes longer for one than some codecs take for its frame. So the usual form
is parsed here; whatever is unusual in any way (an undefined length, text that is no plain number, several items …) is
left to pydicom, for all groups. Not here: which attribute counts for what (oct.dicom.geometry).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple

from pydicom.datadict import keyword_for_tag
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag, Tag

from oct.dicom.attributes import first_item, read_count, read_items, read_numbers, read_text

Numbers = tuple[float, ...]
Parse = Callable[[bytes, str], "Numbers | str | int"]  # (value, byte order) → as oct.dicom.attributes reads it

SHARED, PER_FRAME = Tag(0x5200, 0x9229), Tag(0x5200, 0x9230)  # …FunctionalGroupsSequence
ITEM = (0xFFFE, 0xE000)
LONG_VRS = {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}
SHORT_VRS = {
    *(b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FD", b"FL", b"IS"),
    *(b"LO", b"LT", b"PN", b"SH", b"SL", b"SS", b"ST", b"TM", b"UI", b"UL", b"US"),
}
IN_NUMBERS = b"0123456789+-.eE \\"


class Group(NamedTuple):
    """The attributes of a group; None or empty where it does not have them."""

    position: Numbers | None = None  # ImagePositionPatient
    orientation: Numbers | None = None  # ImageOrientationPatient
    spacing: Numbers | None = None  # PixelSpacing
    between_slices: Numbers | None = None  # SpacingBetweenSlices
    line: Numbers | None = None  # ReferenceCoordinates of the scan in the fundus image
    line_kind: str = ""  # OphthalmicImageOrientation
    number: int | None = None  # InStackPositionNumber
    eye: str = ""  # FrameLaterality


class Unusual(Exception):
    """Left to pydicom."""


def read_groups(dataset: Dataset, sequence: BaseTag) -> list[Group]:
    """The items of the sequence `SHARED` or `PER_FRAME`; none where it is absent."""
    raw = dataset.get_item(sequence) if sequence in dataset else None
    if isinstance(raw, RawDataElement) and isinstance(raw.value, bytes) and raw.VR in ("SQ", None):
        try:
            return parse_groups(raw.value, raw.is_implicit_VR, "<" if raw.is_little_endian else ">")
        except (Unusual, struct.error, ValueError):
            pass  # pydicom says what there is
    return [_read_group(item) for item in read_items(dataset, keyword_for_tag(sequence))]


def _read_group(dataset: Dataset) -> Group:
    measures = first_item(dataset, "PixelMeasuresSequence")
    location = first_item(dataset, "OphthalmicFrameLocationSequence")
    content = first_item(dataset, "FrameContentSequence")
    return Group(
        position=read_numbers(first_item(dataset, "PlanePositionSequence"), "ImagePositionPatient"),
        orientation=read_numbers(first_item(dataset, "PlaneOrientationSequence"), "ImageOrientationPatient"),
        spacing=read_numbers(measures, "PixelSpacing"),
        between_slices=read_numbers(measures, "SpacingBetweenSlices"),
        line=read_numbers(location, "ReferenceCoordinates"),
        line_kind=read_text(location, "OphthalmicImageOrientation"),
        number=None if content is None else read_count(content, "InStackPositionNumber"),
        eye=read_text(first_item(dataset, "FrameAnatomySequence"), "FrameLaterality"),
    )


def parse_groups(data: bytes, implicit: bool, order: str) -> list[Group]:
    """The groups in the value of a sequence, byte order `<` or `>`. An exception where it is unusual."""
    return [_parse_group(data, *span, implicit, order) for span in _items(data, 0, len(data), order)]


def _parse_group(data: bytes, begin: int, end: int, implicit: bool, order: str) -> Group:
    found: dict[str, Numbers | str | int] = {}
    for tag, (vr, at, stop) in _elements(data, begin, end, implicit, order).items():
        wanted = WANTED.get(tag)
        if wanted is None:
            continue
        items = list(_items(data, at, stop, order))
        if vr not in (b"SQ", b"") or len(items) != 1:
            raise Unusual
        for inner, (own, first, last) in _elements(data, *items[0], implicit, order).items():
            if inner in wanted:
                name, expected, parse = wanted[inner]
                if own not in (expected, b"") or first == last:
                    raise Unusual
                found[name] = parse(data[first:last], order)
    return Group(**found)  # type: ignore[arg-type]


def _items(data: bytes, at: int, end: int, order: str) -> Iterator[tuple[int, int]]:
    """Begin and end of each item's content; the items fill `data[at:end]`."""
    read = struct.Struct(f"{order}HHL").unpack_from
    while at < end:
        group, element, size = read(data, at)
        if (group, element) != ITEM or at + 8 + size > end:
            raise Unusual
        yield at + 8, at + 8 + size
        at += 8 + size


def _elements(data: bytes, at: int, end: int, implicit: bool, order: str) -> dict[int, tuple[bytes, int, int]]:
    """VR (empty if implicit), begin and end of each element's value; the elements fill `data[at:end]`."""
    short, long = struct.Struct(f"{order}HH2sH").unpack_from, struct.Struct(f"{order}L").unpack_from
    found = {}
    while at < end:
        group, element, vr, size = short(data, at)
        begin = at + 8
        if implicit:
            if vr.isalpha():  # may be explicit all the same
                raise Unusual
            vr, (size,) = b"", long(data, at + 4)
        elif vr in LONG_VRS:
            begin, (size,) = at + 12, long(data, at + 8)
        elif vr not in SHORT_VRS:
            raise Unusual
        at = begin + size
        if group == 0xFFFE or at > end:
            raise Unusual
        found[group << 16 | element] = vr, begin, at
    return found


def _parse_decimals(value: bytes, order: str) -> Numbers:
    if value.translate(None, IN_NUMBERS):
        raise Unusual
    return tuple(float(part) for part in value.split(b"\\"))


def _parse_floats(value: bytes, order: str) -> Numbers:
    return struct.unpack(f"{order}{len(value) // 4}f", value)


def _parse_count(value: bytes, order: str) -> int:
    return int(struct.unpack(f"{order}L", value)[0])


def _parse_code(value: bytes, order: str) -> str:
    text = value.decode("ascii")
    if not text.replace(" ", "").replace("_", "").isalnum():
        raise Unusual
    return text.strip()


WANTED: dict[int, dict[int, tuple[str, bytes, Parse]]] = {
    0x00209113: {0x00200032: ("position", b"DS", _parse_decimals)},
    0x00209116: {0x00200037: ("orientation", b"DS", _parse_decimals)},
    0x00289110: {
        0x00280030: ("spacing", b"DS", _parse_decimals),
        0x00180088: ("between_slices", b"DS", _parse_decimals),
    },
    0x00220031: {
        0x00220032: ("line", b"FL", _parse_floats),
        0x00220039: ("line_kind", b"CS", _parse_code),
    },
    0x00209111: {0x00209057: ("number", b"UL", _parse_count)},
    0x00209071: {0x00209072: ("eye", b"CS", _parse_code)},
}
