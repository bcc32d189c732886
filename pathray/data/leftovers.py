"""Removes half-written files and folders of killed processes: hidden, and named after their targets.

Atomic writes use a temporary neighbour `.<name>-<uid8>` (pathray.store.storage, pathray.data.plan), which a killed
process leaves behind. Not here: unfinished checkpoints
(pathray.store.committed.sweep), partial bags (pathray.features.publish).
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from pathray.data.plan import DESCRIPTION, SOURCES, UNITS

log = logging.getLogger(__name__)

AGE_S = 3600.0  # younger ones may still be written
DEPTH = 3  # levels of folders to search below an output
_LEFT = re.compile(r"\.(?P<name>.+)-[0-9a-f]{8}")


def sweep_leftovers(output: str, older_than_s: float = AGE_S) -> list[str]:
    """Remove half-written files of earlier starts next to the local path `output` and inside it, if it is a folder.
    Links are neither followed nor removed. Returns the removed paths."""
    target = Path(output).absolute()
    swept = []
    for path in [*_next_to(target), *_within(target, DEPTH)]:
        with contextlib.suppress(OSError):  # another process removes it, or only another user may
            if time.time() - path.lstat().st_mtime > older_than_s and _is_ours(path):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
                swept.append(str(path))
    if swept:
        log.info("removed %d half-written files and folders from earlier starts", len(swept))
    return swept


def _is_ours(path: Path) -> bool:
    """Whether we wrote it: any file with such a name, or a folder that contains only parts of a plan."""
    return not path.is_dir() or set(os.listdir(path)) <= {UNITS, SOURCES, DESCRIPTION}


def _next_to(target: Path) -> Iterator[Path]:
    for path in _entries(target.parent):
        left = _LEFT.fullmatch(path.name)
        if left is not None and left["name"].removesuffix("-old") == target.name:
            yield path


def _within(folder: Path, depth: int) -> Iterator[Path]:
    for path in _entries(folder):
        if _LEFT.fullmatch(path.name):
            yield path
        elif depth > 1 and path.is_dir():
            yield from _within(path, depth - 1)


def _entries(folder: Path) -> list[Path]:
    """The entries of a folder without links; empty if it cannot be listed."""
    try:
        with os.scandir(folder) as entries:
            return [Path(entry.path) for entry in entries if not entry.is_symlink()]
    except OSError:
        return []
