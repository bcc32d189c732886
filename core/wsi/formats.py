"""Names of slide formats: what a path holds, and which nobody here can read. Opens no slide."""

from __future__ import annotations

import os

from core.errors import MissingFile, UserError
from core.urls import is_url, local_path, public

CONVERT = "convert it to a pyramidal TIFF or DICOM with the vendor's software"
UNSUPPORTED = {
    ".sdpc": "SDPC (Sqray)",
    ".sdpl": "SDPC (Sqray)",
    ".dyqx": "DYQX (Sqray)",
    ".dyj": "DYJ (Sqray)",
    ".kfb": "KFB (KFBIO)",
    ".kfbl": "KFB (KFBIO)",
    ".tmap": "TMAP (Unic)",
    ".tron": "TRON (InteMedic)",
    ".mds": "MDS (Motic)",
    ".mdsx": "MDSX (Motic)",
    ".ibl": "IBL (TEKSQRAY)",
    ".zyp": "ZYP",
    ".hdx": "HDX (Hyper)",
    ".vmic": "VMIC (PreciPoint)",
    ".lif": "LIF (Leica)",
    ".jp2": "a single JPEG 2000 image",
}


def located(path: str) -> str:
    """The file to open for `path`: an MRXS or DICOM folder is replaced by the file that names the slide.

    Raises MissingFile, and UserError naming a format that nobody here reads or a folder that holds no slide.
    """
    suffix = os.path.splitext(path.split("?")[0])[1].lower()
    if suffix in UNSUPPORTED:
        raise UserError(
            f"{UNSUPPORTED[suffix]} slides cannot be read",
            file=public(path),
            found=suffix,
            expected=f"an open format: {CONVERT}",
        )
    if is_url(path):
        return path
    path = local_path(path)
    if not os.path.exists(path):
        raise MissingFile("no such slide", file=path)
    return _in_folder(path) if os.path.isdir(path) else path


def _in_folder(folder: str) -> str:
    names = sorted(os.listdir(folder))
    beside = folder.rstrip("/") + ".mrxs"
    if os.path.isfile(beside) and any(name.lower() == "slidedat.ini" for name in names):
        return beside
    for suffix in (".mrxs", ".dcm"):
        found = [name for name in names if name.lower().endswith(suffix)]
        if found and (suffix == ".dcm" or len(found) == 1):
            return os.path.join(folder, found[0])
    raise UserError(
        "the folder is not a slide",
        file=folder,
        found=f"{len(names)} entries: {', '.join(names[:5])}",
        expected="a slide file, an MRXS slide with its folder, or a folder of DICOM instances (.dcm) of one slide",
    )


def is_tiff(head: bytes) -> bool:
    return head[:4] in (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")
