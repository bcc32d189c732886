"""Folders of a few files that count once their description is there: an artifact, a copy of a plan.

For what is written once and kept next to others of its name, under a prefix of its own: pathray.store.committed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pathray.store.storage import Storage


def publish_with_description(store: Storage, files: Mapping[str, Path], name: str, description: bytes) -> None:
    """Put local `files` into the folder, by name, in the place of those that are there.

    An older description goes first and the new one, `name`, comes last: a half-replaced folder is none.
    """
    store.remove(name)
    for own, path in files.items():
        store.put(path, own)
    store.write_bytes(name, description)
