"""Publishes local files and folders completely or not at all.

What is written lies beside its target under another name until it is whole and durable. Not here: names of what is
half-written and its removal (pathray.data.leftovers, pathray.features.publish), folders whose files appear one by one
(pathray.store.committed), files that only one process may create (pathray.store.exclusive), copies that may be lost
(pathray.store.cache), URLs (Storage).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path


def fsync(path: Path) -> None:
    """Make a local file or folder durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish_file(partial: Path, target: Path) -> None:
    """Put the finished file `partial`, beside `target`, in its place. Readers see the old file or the new one, also
    after a power failure."""
    fsync(partial)
    os.replace(partial, target)
    fsync(target.parent)


@contextlib.contextmanager
def replacing_file(target: Path, partial: Path) -> Iterator[Path]:
    """`partial`, for the block to write: published as `target` when the block ends without an error, else removed."""
    try:
        yield partial
        publish_file(partial, target)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def replace_folder(partial: Path, target: Path) -> None:
    """Put the finished folder `partial`, beside `target`, in its place. A reader of `target` may find it missing for a
    moment, and never half of it. OSError if it cannot be put there; an older `target` is then back in its place, unless
    another process has put one there."""
    for path in (*partial.iterdir(), partial):
        fsync(path)
    if not target.exists():
        os.replace(partial, target)
        fsync(target.parent)
        return
    old = target.with_name(f".{target.name}-old-{uuid.uuid4().hex[:8]}")
    os.replace(target, old)
    try:
        os.replace(partial, target)
    except OSError:
        with contextlib.suppress(OSError):
            os.replace(old, target)
        raise
    fsync(target.parent)
    shutil.rmtree(old)
