"""Reads a file of weights (pathray.store.weights_file), or the weights in a folder that Pathray exported.

Not here: names (mil.model.import_weights).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pathray.errors import UserError
from pathray.store.artifact_kind import WEIGHTS
from pathray.store.storage import Storage, digest_bytes
from pathray.store.weights_file import load_weights


def weights_digest(path: str) -> str:
    """The digest of the weights at a path or URL. MissingFile if there are none."""
    store, name = _place(path)
    return digest_bytes(store.read_bytes(name))


def read_weights_file(path: str) -> Mapping[str, Any]:
    """The content of a file by name. MissingFile; UserError for a file that is neither, or that holds code."""
    store, name = _place(path)
    return store.read_local(name, lambda local: _read(local, store.join(name)))


def _place(path: str) -> tuple[Storage, str]:
    """Where the file is: in an exported folder it has a fixed name."""
    if Storage.of(path).exists(WEIGHTS):
        return Storage.of(path), WEIGHTS
    folder, _, name = path.rpartition("/")
    return Storage.of(folder or "."), name


def _read(local: Path, where: str) -> Mapping[str, Any]:
    found = load_weights(local, where)
    if not isinstance(found, Mapping):
        raise UserError("not a state_dict", file=where, found=type(found).__name__, expected="names and tensors")
    return found
