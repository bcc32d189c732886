"""Encapsulated pixel data → the fragments of each frame, as views (DICOM PS3.5, A.4).

A frame has one fragment or several; the basic offset table may be empty. Too few or too many frames is an
UnreadableUnit here, before anything is decoded. Not here: codecs (oct.dicom.codecs).
"""

from __future__ import annotations

import struct

from pathray.errors import UnreadableUnit

ITEM = 0xFFFEE000
DELIMITER = 0xFFFEE0DD
STARTS = (b"\xff\x4f\xff\x51", b"\xff\xd8\xff")  # of a JPEG 2000 codestream, of a JPEG or JPEG-LS image
JP2_BOX = b"\x00\x00\x00\x0cjP  "
RLE_HEADER = 64  # bytes; the first segment of an RLE frame begins after them

Fragments = list[memoryview]


def split_frames(pixels: memoryview, frames: int, path: str) -> list[Fragments]:
    """The fragments of each of `frames` frames, in stored order.

    UnreadableUnit: `truncated` if the value ends inside an item, `frames` if it holds more or fewer frames, `corrupt`
    if it is no sequence of items.
    """
    table, fragments, offsets, complete = _read_items(pixels, path)
    if len(fragments) == frames:
        return [[fragment] for fragment in fragments]
    groups = _group_by_table(table, fragments, offsets, path) if table else _group_by_start(fragments)
    if len(groups) == frames:
        return groups
    if len(groups) < frames and not complete:
        raise UnreadableUnit("truncated", path, f"the file ends after {len(groups)} of {frames} frames")
    raise UnreadableUnit("frames", path, f"NumberOfFrames says {frames}, the pixel data holds {len(groups)}")


def _read_items(pixels: memoryview, path: str) -> tuple[list[int], Fragments, list[int], bool]:
    """The offset table, the fragments, where each one's item begins (from the first), and whether the sequence is
    closed by its delimiter."""
    items: Fragments = []
    starts: list[int] = []
    at = 0
    while at + 8 <= len(pixels):
        group, element, size = struct.unpack_from("<HHL", pixels, at)
        tag = group << 16 | element
        if tag == DELIMITER:
            break
        if tag != ITEM:
            raise UnreadableUnit("corrupt", path, f"no item at byte {at} of the pixel data")
        if at + 8 + size > len(pixels):
            raise UnreadableUnit("truncated", path, f"the file ends inside fragment {len(items)} of the pixel data")
        items.append(pixels[at + 8 : at + 8 + size])
        starts.append(at)
        at += 8 + size
    if not items:
        raise UnreadableUnit("truncated", path, "the pixel data holds no fragment")
    table = list(struct.unpack_from(f"<{len(items[0]) // 4}L", items[0]))
    first = starts[1] if len(starts) > 1 else 0
    return table, items[1:], [start - first for start in starts[1:]], at + 8 <= len(pixels)


def _group_by_table(table: list[int], fragments: Fragments, offsets: list[int], path: str) -> list[Fragments]:
    """Frames that begin after the last fragment are left out."""
    number = {offset: i for i, offset in enumerate(offsets)}
    begins = [number[offset] for offset in table if offset in number]
    last = max(offsets, default=-1)
    if any(offset <= last and offset not in number for offset in table) or begins != sorted(set(begins)):
        raise UnreadableUnit("corrupt", path, "the basic offset table does not point to fragments in order")
    ends = [*begins[1:], len(fragments)]
    return [fragments[begin:end] for begin, end in zip(begins, ends, strict=True)]


def _group_by_start(fragments: Fragments) -> list[Fragments]:
    """A frame begins with each fragment that begins as an image does."""
    groups: list[Fragments] = []
    for fragment in fragments:
        if not groups or _begins_image(bytes(fragment[:16])):
            groups.append([])
        groups[-1].append(fragment)
    return groups


def _begins_image(head: bytes) -> bool:
    if head.startswith((*STARTS, JP2_BOX)):
        return True
    segments, first = struct.unpack_from("<LL", head) if len(head) >= 8 else (0, 0)
    return bool(1 <= segments <= 15 and first == RLE_HEADER)
