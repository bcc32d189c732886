"""Half-written files and folders of processes that were killed: hidden, named after what they should have become.

What is written whole or not at all goes through a neighbour named `.<name>-<uid8>` (pathray.store.storage,
pathray.data.plan); a process that is killed leaves it. Not here: checkpoints that were begun
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
DEPTH = 3  # folders below an output that are looked into
_LEFT = re.compile(r"\.(?P<name>.+)-[0-9a-f]{8}")


def sweep_leftovers(output: str, older_than_s: float = AGE_S) -> list[str]:
    """Remove what earlier starts left half-written: beside the local path `output` under its name, and anywhere in the
    folder that it may be. Links are neither followed nor removed. Returns the paths."""
    target = Path(output).absolute()
    swept = []
    for path in [*_beside(target), *_within(target, DEPTH)]:
        with contextlib.suppress(OSError):  # somebody else removes it, or may alone
            if time.time() - path.lstat().st_mtime > older_than_s and _is_ours(path):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
                swept.append(str(path))
    if swept:
        log.info("removed %d half-written files and folders of earlier starts", len(swept))
    return swept


def _is_ours(path: Path) -> bool:
    """A file with such a name is; a folder only when it holds the parts of a plan and nothing else."""
    return not path.is_dir() or set(os.listdir(path)) <= {UNITS, SOURCES, DESCRIPTION}


def _beside(target: Path) -> Iterator[Path]:
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
    """What stands in a folder, links left out; nothing where it cannot be listed."""
    try:
        with os.scandir(folder) as entries:
            return [Path(entry.path) for entry in entries if not entry.is_symlink()]
    except OSError:
        return []
