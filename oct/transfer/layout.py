"""Where a ZIP member goes: structural_oct/DEVICE/PERSON/FILE.dcm, by the folders in its name and in its archive's path.

Folders below the person's become part of the file's name, so that two visits do not overwrite each other. Not here:
what the DICOM file says of itself (oct.dicom).
"""

from __future__ import annotations

import re

from oct.indexing.devices import DATA_FOLDER, KNOWN, device_by_folder
from oct.transfer.archive import SUFFIX

SUFFIXES = (".dcm", ".dicom")
_PERSON = re.compile(r"(?=.*\d)[A-Za-z0-9.-]+")  # of a file's name, before its first underscore


class Skipped(Exception):
    """A member that is no DICOM file; the message says what it is."""


class Refused(Exception):
    """A member that cannot be placed; the message says why."""


def place_member(archive: str, name: str) -> str:
    """The path of a member below the output, by its name and the path of its archive. Raises Skipped and Refused.

    The person is the folder below the device's; in an archive without folders, the archive's name below the device's
    folder, or what the file's name begins with.
    """
    if is_unsafe(name):
        raise Refused("its name leads out of the archive")
    *folders, file = name.split("/")
    _check_kind(folders, file)
    outside = re.sub(rf"{re.escape(SUFFIX)}$", "", archive, flags=re.IGNORECASE).split("/")
    at = _device_at(folders)
    device = folders[at] if at is not None else _device_of(outside)
    if not device:
        raise Refused("no folder of it or of its archive names a device")
    person, *deeper = folders[at + 1 :] if at is not None else _person_and_below(outside, folders, file)
    return "/".join([DATA_FOLDER, _device_word(device), person, "_".join([*deeper, _with_suffix(file)])])


def is_unsafe(name: str) -> bool:
    """Whether a name would leave the folder that an archive is unpacked to, or is no name on some system."""
    parts = name.split("/")
    return bool(re.search(r"[\\\0]|^[A-Za-z]:|[\x01-\x1f]", name)) or any(p in ("", ".", "..") for p in parts)


def _check_kind(folders: list[str], file: str) -> None:
    if any(part.startswith(".") or part == "__MACOSX" for part in (*folders, file)):
        raise Skipped("a hidden file")
    if file.lower().endswith(SUFFIX):
        raise Refused("an archive inside an archive: unpack it first")
    if not file.lower().endswith(SUFFIXES):
        raise Skipped("not a .dcm file")


def _device_at(folders: list[str]) -> int | None:
    """Which folder is the device's: a known device, or the one below structural_oct."""
    known = [i for i, folder in enumerate(folders) if device_by_folder([folder])]
    if known:
        return known[0]
    lower = [folder.lower() for folder in folders]
    at = lower.index(DATA_FOLDER) + 1 if DATA_FOLDER in lower else len(folders)
    return at if at < len(folders) - 1 else None


def _device_of(outside: list[str]) -> str:
    """The device that the archive's path names, the nearest part first: a folder, or a part of its own name."""
    for part in reversed(outside):
        word = re.sub(r"[^a-z0-9]+", "_", part.lower())
        if found := next((device for device in KNOWN if device in word), ""):
            return found
    return outside[outside.index(DATA_FOLDER) + 1] if DATA_FOLDER in outside[:-1] else ""


def _person_and_below(outside: list[str], folders: list[str], file: str) -> list[str]:
    """The person of a member whose folders name no device, and the folders below: an archive `1001.zip` is one
    person's, whatever is in it; else the first folder that can be a person's. Raises Refused."""
    inner = [folder for folder in folders if folder.lower() != DATA_FOLDER]
    if outside[-1][:1].isdigit() and _is_below_device(outside):
        return [outside[-1], *(folder for folder in inner if folder != outside[-1])]
    persons = [i for i, folder in enumerate(inner) if _PERSON.fullmatch(folder)]
    if inner and not persons:
        raise Refused("none of its folders says whose it is")
    return inner[persons[0] :] if inner else [_person(outside, file)]


def _is_below_device(outside: list[str]) -> bool:
    """Whether the archive is in a device's folder."""
    above = outside[-2] if len(outside) > 1 else ""
    in_data = DATA_FOLDER in outside[:-2] and outside.index(DATA_FOLDER) == len(outside) - 3
    return bool(device_by_folder([above])) or in_data


def _person(outside: list[str], file: str) -> str:
    if _is_below_device(outside):
        return outside[-1]
    first = file.partition("_")[0]
    if first == file or not _PERSON.fullmatch(first):
        raise Refused("neither a folder nor its name says whose it is")
    return first


def _device_word(device: str) -> str:
    return device_by_folder([device]) or re.sub(r"[^a-z0-9]+", "_", device.lower()).strip("_")


def _with_suffix(file: str) -> str:
    return file.rpartition(".")[0] + ".dcm"
