"""The scanner of a volume, by its folder and by what names it: one word, such as topcon_triton.

Not here: what kind of scan it is (the DICOM header says that), vendors' quirks.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

KNOWN: dict[str, tuple[str, str]] = {  # device: what manufacturer and model together must contain
    "heidelberg_spectralis": ("heidelberg", "spectralis"),
    "topcon_triton": ("topcon", "triton"),
    "topcon_maestro2": ("topcon", "maestro2"),
    "zeiss_cirrus": ("zeiss", "cirrus"),
}
DATA_FOLDER = "structural_oct"  # of AI-READI: its folders are the devices
UNKNOWN = "unknown"


def device_of(path: str, manufacturer: str = "", model: str = "") -> str:
    """The device of the volume at `path` (below the data set's root).

    A known device in the path's folders comes first, then one by manufacturer and model; else the device's folder as it
    is called: `bioptigen_sdois` in structural_oct/bioptigen_sdois/2001/a.dcm. "unknown" if nothing says it.
    """
    folders = path.strip("/").split("/")[:-1]
    named = device_by_folder(folders) or device_by_name(manufacturer, model)
    return named or _device_folder(folders) or _word(f"{manufacturer} {model}") or UNKNOWN


def device_by_folder(folders: Sequence[str]) -> str:
    """The known device among folder names; "" if there is none."""
    return next((name for name in map(_word, folders) if name in KNOWN), "")


def device_by_name(manufacturer: str, model: str) -> str:
    """The known device of this manufacturer and model, however they are spelt (Maestro 2, SPECTRALIS); "" if none."""
    text = re.sub(r"[^a-z0-9]", "", f"{manufacturer}{model}".lower())
    return next((name for name, words in KNOWN.items() if all(word in text for word in words)), "")


def _device_folder(folders: Sequence[str]) -> str:
    """The folder below `structural_oct`, or else the one that holds the persons' folders; "" if there is none."""
    if DATA_FOLDER in folders[:-2]:
        return _word(folders[folders.index(DATA_FOLDER) + 1])
    above = _word(folders[-2]) if len(folders) > 1 else ""
    return "" if above == DATA_FOLDER else above


def _word(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")
