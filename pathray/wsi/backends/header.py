"""Reads the metadata of a TIFF slide: the scanner's description, OME-XML, resolution tags and the pixel spacing.

`check_spacing` is the one rule for accepting a spacing, for all backends. Not here: pixels, levels.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

FINEST_MPP, COARSEST_MPP = 0.05, 20.0  # µm per pixel of microscopes
COARSEST_HEADER_MPP = 100.0  # limit for a vendor's header: DICOM instances of 29 µm exist
ANISOTROPY = 1.02  # x and y may differ by this factor; their mean is used
DISAGREE = 1.05  # two sources contradict each other beyond this factor
# Resolutions of printers, office and film scanners that fall within a microscope's range
PRINT_DPI = (1440, 1600, 1800, 2400, 2880, 3000, 3200, 3600, 4000, 4800, 5400, 6400, 7200, 9600)

_MICROMETRES = {"µm": 1.0, "μm": 1.0, "um": 1.0, "micron": 1.0, "microns": 1.0, "micrometer": 1.0, "micrometre": 1.0}
_MICROMETRES |= {"nm": 1e-3, "Å": 1e-4, "mm": 1e3, "cm": 1e4, "dm": 1e5, "m": 1e6, "in": 25400.0}


@dataclass(frozen=True)
class Spacing:
    """µm per pixel of level 0 and its source, ``header`` or ``tags``; None if no plausible value was found.

    `note` says why a value was rejected or which other source disagrees; "" if there is nothing to report.
    """

    mpp: float | None = None
    source: str | None = None
    note: str = ""


def check_spacing(x: float, y: float, source: str) -> Spacing:
    """The spacing if `x` and `y` (µm per pixel, from `source`) are plausible; otherwise none, with the reason in
    `note`."""
    said = f"the {source} say" if source == "tags" else f"the {source} says"
    if not all(math.isfinite(v) and v > 0 for v in (x, y)):
        return Spacing(note=f"{said} {x:g} x {y:g} µm per pixel, which is not a valid spacing")
    if max(x, y) > ANISOTROPY * min(x, y):
        return Spacing(note=f"{said} {x:.4g} µm per pixel in x and {y:.4g} in y: pixels are not square")
    mpp = x if x == y else (x + y) / 2
    coarsest = COARSEST_MPP if source == "tags" else COARSEST_HEADER_MPP
    if not FINEST_MPP <= mpp <= coarsest:
        return Spacing(note=f"{said} {mpp:.4g} µm per pixel, outside {FINEST_MPP:g} to {coarsest:g}")
    dpi = 25400.0 / mpp
    if source == "tags" and any(abs(dpi - known) < 1e-3 * known for known in PRINT_DPI):
        return Spacing(note=f"the tags say {dpi:.0f} dpi ({mpp:.4g} µm per pixel), a printer's resolution")
    return Spacing(mpp, source, f"{said} {mpp:.4g} µm per pixel, coarser than a scan" if mpp > COARSEST_MPP else "")


def spacing_of(tiff: Any, page: Any) -> Spacing:
    """The spacing of the scan with this full-resolution `page`.

    The vendor's header (Aperio, OME) takes precedence over the resolution tags. An OME header without a usable size is
    not replaced by the tags, because OME writers fill these with defaults.
    """
    text, tags = description(page), _resolution(page)
    if text.startswith("Aperio"):
        found = _aperio(text)
        return _note_contradictions(found, tags, text) if found != Spacing() else tags
    if (xml := ome_xml(tiff)) is not None:
        return _note_contradictions(_ome(xml, page), tags, "")
    if (value := _aperio_mpp(text)) is not None:
        return _note_contradictions(check_spacing(value, value, "header"), tags, text)
    return tags


def description(page: Any) -> str:
    """The ImageDescription of a page; bytes that are not UTF-8 (a name in Shift-JIS, GBK …) are replaced."""
    value = page.tags.valueof(270, default="")
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace").rstrip("\x00")
    text = str(value)
    if re.search("[ÂÃÎ]", text):  # tifffile decoded UTF-8 as Windows-1252 because of a single byte
        text = text.encode("cp1252", "replace").decode("utf-8", "replace")
    return text


def aperio_size(text: str) -> tuple[tuple[int, int] | None, bool]:
    """The page size in an Aperio description, and whether the page is a reduced copy (``… -> w x h``)."""
    lines = text.splitlines()
    line = re.split(r"[|;]", lines[1])[0] if len(lines) > 1 else ""
    if found := re.search(r"->\s*(\d+)x(\d+)", line):
        return (int(found[1]), int(found[2])), True
    found = re.search(r"\[[-\d]+,[-\d]+\s+(\d+)x(\d+)\]", line) or re.match(r"\s*(\d+)x(\d+)\b", line)
    return ((int(found[1]), int(found[2])) if found else None), False


def is_aperio_associated(text: str) -> bool:
    """Whether an Aperio description belongs to a label or macro photograph."""
    lines = text.splitlines()
    return len(lines) > 1 and bool(re.match(r"\s*(label|macro)\b", lines[1], re.IGNORECASE))


def ome_xml(tiff: Any) -> str | None:
    """The OME-XML of a file, even if some bytes are not UTF-8; None if it is not an OME-TIFF."""
    text = description(tiff.pages[0]) if len(tiff.pages) else ""
    head = text.lstrip()[:2000]
    return text if head.startswith("<") and re.search(r"<(\w+:)?OME\b", head) else None


def ome_images(xml: str) -> list[dict[str, str]]:
    """The attributes of each image's Pixels element, with its page numbers (comma separated) as ``ifd``.

    ValueError for XML that cannot be parsed or that declares a document type (entities are never expanded).
    """
    import xml.etree.ElementTree as ElementTree

    if "<!DOCTYPE" in xml or "<!ENTITY" in xml:
        raise ValueError("OME-XML with a document type declaration")
    try:
        root = ElementTree.fromstring(re.sub(r"^\s*<\?xml[^>]*\?>", "", xml.rstrip("\x00 \r\n\t")))
    except ElementTree.ParseError as e:
        raise ValueError(f"OME-XML that cannot be parsed: {e}") from e
    return [_pixels(element) for element in root.iter() if _name(element) == "Pixels"]


def _pixels(element: Any) -> dict[str, str]:
    data = [child for child in element if _name(child) == "TiffData"]
    pages = [str(number) for child in data for number in _ifds(child.attrib)]
    return {**element.attrib, "ifd": ",".join(pages)}


def _ifds(attributes: dict[str, str]) -> Iterator[int]:
    try:
        first, count = int(attributes.get("IFD", -1)), int(attributes.get("PlaneCount", 1))
    except ValueError:
        return
    if first >= 0:
        yield from range(first, first + min(count, 1 << 16))


def _name(element: Any) -> str:
    return str(element.tag).rpartition("}")[2]


def _ome(xml: str, page: Any) -> Spacing:
    try:
        images = ome_images(xml)
    except ValueError as e:
        return Spacing(note=str(e))
    size = (str(page.imagewidth), str(page.imagelength))
    own = [image for image in images if (image.get("SizeX", "").strip(), image.get("SizeY", "").strip()) == size]
    if not own:
        return Spacing(note=f"the OME header has no image of {size[0]} x {size[1]} pixels")
    found = [_ome_spacing(image) for image in own]
    if len({spacing.mpp for spacing in found}) > 1:
        return Spacing(note="images of equal size have different spacings in the OME header")
    return found[0]


def _ome_spacing(image: dict[str, str]) -> Spacing:
    sizes = []
    for axis in "XY":
        value, unit = image.get(f"PhysicalSize{axis}"), image.get(f"PhysicalSize{axis}Unit", "µm").strip()
        if value is None:
            continue
        if unit not in _MICROMETRES:
            return Spacing(note=f"the OME header gives PhysicalSize{axis} in {unit!r}, which is not a unit of length")
        try:
            sizes.append(float(value) * _MICROMETRES[unit])
        except ValueError:
            return Spacing(note=f"the OME header says PhysicalSize{axis} = {value!r}")
    if not sizes:
        return Spacing(note="the OME header has no PhysicalSizeX")
    return check_spacing(sizes[0], sizes[-1], "header")


def _aperio(text: str) -> Spacing:
    value = _aperio_mpp(text)
    return Spacing() if value is None else check_spacing(value, value, "header")


def _aperio_mpp(text: str) -> float | None:
    found = re.search(r"[|;]\s*MPP\s*=\s*([0-9.eE+-]+)", text)
    try:
        return float(found[1]) if found else None
    except ValueError:
        return None


def _resolution(page: Any) -> Spacing:
    """The spacing from XResolution, YResolution and ResolutionUnit; none if the unit is not a length."""
    unit = {2: 25400.0, 3: 10000.0}.get(int(page.tags.valueof(296, default=2)))
    values = [page.tags.valueof(code) for code in (282, 283)]
    if unit is None or not all(value and value[0] and value[1] for value in values):
        return Spacing()
    sizes: Sequence[float] = [unit * value[1] / value[0] for value in values]
    return check_spacing(sizes[0], sizes[1], "tags")


def _note_contradictions(found: Spacing, tags: Spacing, text: str) -> Spacing:
    """`found` from the header, with a note if the tags or the objective's magnification contradict it."""
    if found.mpp is None:
        return found
    notes = []
    if tags.mpp is not None and disagree(found.mpp, tags.mpp):
        notes.append(f"the header says {found.mpp:.4g} µm per pixel, the resolution tags {tags.mpp:.4g}")
    found_power = re.search(r"[|;]\s*AppMag\s*=\s*(\d+(?:\.\d+)?)", text)
    power = float(found_power[1]) if found_power else 0.0
    if power > 0 and not 0.6 < found.mpp * power / 10 < 1.67:
        usual = f"{10 / power:.3g} is usual"
        notes.append(f"the header says {found.mpp:.4g} µm per pixel at {power:g}x, where {usual}")
    return Spacing(found.mpp, found.source, "; ".join([found.note, *notes] if found.note else notes))


def disagree(a: float, b: float) -> bool:
    """Whether two spacings differ by more than header rounding explains."""
    return max(a, b) > DISAGREE * min(a, b)
