"""Slide formats by file name: which file to open for a path, and which formats are not supported. Opens no slide."""

from __future__ import annotations

import os

from pathray.errors import MissingFile, UserError
from pathray.urls import is_url, local_path, public

CONVERT = "convert it to a pyramidal TIFF or DICOM with the vendor's software"
SDPC = ".sdpc"  # of Sqray scanners; read by the package opensdpc alone
UNSUPPORTED = {
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
    ".vsi": "VSI (Olympus; the .vsi itself holds only the overview)",
    ".jp2": "a single JPEG 2000 image",
}


def slide_file_of(path: str) -> str:
    """The file to open for `path`; for an MRXS or DICOM folder, the file that represents the slide.

    Raises MissingFile, and UserError for an unsupported format or a folder without a slide.
    """
    suffix = os.path.splitext(path.split("?")[0])[1].lower()
    if suffix in UNSUPPORTED:
        raise UserError(
            f"unsupported slide format: {UNSUPPORTED[suffix]}",
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
    mrxs = folder.rstrip("/") + ".mrxs"
    if os.path.isfile(mrxs) and any(name.lower() == "slidedat.ini" for name in names):
        return mrxs
    for suffix in (".mrxs", ".dcm"):
        found = [name for name in names if name.lower().endswith(suffix)]
        if suffix == ".dcm" and found:
            _check_one_series(folder, found)
        if found and (suffix == ".dcm" or len(found) == 1):
            return os.path.join(folder, found[0])
    raise UserError(
        "the folder is not a slide",
        file=folder,
        found=f"{len(names)} entries: {', '.join(names[:5])}",
        expected="a slide file, an MRXS slide with its folder, or a folder of DICOM instances (.dcm) of one slide",
    )


def _check_one_series(folder: str, names: list[str]) -> None:
    """UserError if the DICOM instances of a folder belong to several series, that is to several slides: only one would
    be opened and the others silently ignored."""
    import pydicom

    series = dict[str, str]()
    for name in names:
        try:
            found = pydicom.dcmread(
                os.path.join(folder, name), stop_before_pixels=True, specific_tags=["SeriesInstanceUID"]
            )
        except (OSError, ValueError, pydicom.errors.InvalidDicomError):
            continue  # opening the slide reports what is wrong with it
        series.setdefault(str(found.get("SeriesInstanceUID", "")), name)
    if len(series) > 1:
        shown = "; ".join(f"{name} of {uid}" for uid, name in list(series.items())[:5])
        raise UserError(
            "the folder contains several DICOM series",
            file=folder,
            key="SeriesInstanceUID",
            found=f"{len(series)} series: {shown}",
            expected="one folder per slide",
        )


def is_tiff(head: bytes) -> bool:
    return head[:4] in (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")
