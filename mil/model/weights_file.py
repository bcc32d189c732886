"""Reads a file of weights: safetensors, or what torch saved; or the weights in a folder that Pathray exported.

Only tensors and plain values are read, never code. Not here: names (mil.model.import_weights).
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pathray.errors import UserError
from pathray.store.artifact_kind import WEIGHTS
from pathray.store.storage import Storage, digest_bytes


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
    if where.endswith(".safetensors"):
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(local)
        except SafetensorError as e:
            raise UserError("not a file of weights, or damaged", file=where, found=str(e)[:200]) from e
    import torch

    try:
        found = torch.load(local, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as e:
        message, expected = "the file holds more than weights, or is damaged", "a state_dict, or safetensors"
        raise UserError(message, file=where, found=str(e).splitlines()[0][:160], expected=expected) from e
    if not isinstance(found, Mapping):
        raise UserError("not a state_dict", file=where, found=type(found).__name__, expected="names and tensors")
    return found
