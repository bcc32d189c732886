"""Reads the files of a published encoder: weights with their digests, in one file or in shards, and its config.json.

Only tensors and plain values are read, never code. Not here: programs (pathray.features.published.programs), what the
tensors mean (pathray.features.published.convert).
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pathray.errors import MissingFile, UserError
from pathray.store.storage import Storage, digest_of
from pathray.store.weights_file import load_weights

if TYPE_CHECKING:
    from torch import Tensor

SUFFIXES = (".safetensors", ".bin", ".pth", ".pt")
INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
USUAL = ("model.safetensors", "pytorch_model.bin", "open_clip_model.safetensors")  # in this order, of equal content
CONFIG = "config.json"
CONTAINERS = ("state_dict", "model", "teacher")
WRAPPERS = ("module.", "_orig_mod.", "model.", "backbone.", "dinov2.")


@dataclass(frozen=True)
class Files:
    """Where the weights are: `names` of files in `folder`; `index`: which file has which parameter, of shards."""

    folder: str
    names: tuple[str, ...]
    index: Mapping[str, str] | None = None
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def path(self) -> str:
        """What errors call the weights."""
        return self.folder if self.index is not None else Storage.of(self.folder).join(self.names[0])


@dataclass(frozen=True)
class Weights:
    """Tensors by name, on the CPU, and the SHA-256 of each file that they are of."""

    tensors: Mapping[str, Tensor]
    digests: Mapping[str, str]


def find_files(path: str) -> Files:
    """The weights at a path or URL: a file, or a folder as it comes from a hub. MissingFile if there are none;
    UserError for several files of which none is the usual one, and for an index that is damaged."""
    store = Storage.of(path)
    entries = store.list()
    if not entries:
        folder, _, name = path.rstrip("/").rpartition("/")
        store = Storage.of(folder or ("/" if path.startswith("/") else "."))
        if not name or not store.exists(name):
            raise MissingFile("no weights here", file=path, key="weights", expected="a file, or a folder with weights")
        return Files(store.url, (name,))
    config = _json(store, CONFIG) if CONFIG in entries else {}
    for name in INDEXES:
        if name in entries:
            index = _index(store, name)
            return Files(store.url, tuple(sorted(set(index.values()))), index, config)
    found = [name for name in USUAL if name in entries][:1] or [n for n in entries if n.endswith((*SUFFIXES, ".onnx"))]
    if len(found) != 1:
        message = "no weights in this folder" if not found else "several files of weights in this folder"
        expected = f"weights=FILE, or one of {', '.join(USUAL)}"
        raise UserError(
            message, file=path, key="weights", found=sorted(found) or sorted(entries)[:8], expected=expected
        )
    return Files(store.url, (found[0],), None, config)


def read_weights(files: Files) -> Weights:
    """All tensors. MissingFile for a shard that is not there; UserError for a file that is no state_dict, is damaged or
    holds code, and for shards that do not hold what their index says."""
    store = Storage.of(files.folder)
    tensors, digests = dict[str, Any](), dict[str, str]()
    for name in files.names:
        if not store.exists(name):
            raise MissingFile("a file of the weights is missing", file=store.join(name), key="weights")
        where = store.join(name)
        found, digests[name] = store.read_local(name, partial(_read_with_digest, where))
        if files.index is not None:
            _check_shard(found, [key for key, at in files.index.items() if at == name], where)
        tensors |= found
    return Weights(_bare(tensors), digests)


def is_torchscript(local: Path) -> bool:
    """Whether a file is a TorchScript program: an archive that holds code beside its tensors."""
    if not zipfile.is_zipfile(local):
        return False
    with zipfile.ZipFile(local) as archive:
        return any("/code/" in name for name in archive.namelist())


def _read_with_digest(where: str, local: Path) -> tuple[dict[str, Tensor], str]:
    return _tensors(load_weights(local, where), where), digest_of(local)


def _tensors(found: Any, where: str) -> dict[str, Tensor]:
    """The tensors by name, out of the containers that training programs put around them."""
    from torch import Tensor

    if isinstance(found, Mapping):
        for key in CONTAINERS:
            if isinstance(inner := found.get(key), Mapping):
                return _tensors(inner, where)
        if found and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in found.items()):
            return dict(found)
    expected = "names and tensors"
    raise UserError("not a state_dict", file=where, found=type(found).__name__, expected=expected)


def _bare(tensors: dict[str, Any]) -> dict[str, Any]:
    """Without the beginnings that wrappers give to all names."""
    for wrapper in WRAPPERS:
        if tensors and all(name.startswith(wrapper) for name in tensors):
            return _bare({name.removeprefix(wrapper): value for name, value in tensors.items()})
    return tensors


def _check_shard(found: Mapping[str, Any], listed: Iterable[str], where: str) -> None:
    wanted = set(listed)
    if wrong := sorted(wanted ^ found.keys()):
        message = "a shard does not hold what the index says"
        said = "missing" if wrong[0] in wanted else "not in the index"
        raise UserError(message, file=where, key=wrong[0], found=said, expected=f"the {len(wanted)} listed parameters")


def _index(store: Storage, name: str) -> dict[str, str]:
    found = _json(store, name).get("weight_map")
    if not isinstance(found, dict) or not found or not all(isinstance(v, str) and "/" not in v for v in found.values()):
        raise UserError(
            "the index of shards is damaged", file=store.join(name), key="weight_map", expected="file names"
        )
    return found


def _json(store: Storage, name: str) -> dict[str, Any]:
    try:
        found = json.loads(store.read_bytes(name))
    except ValueError as e:
        raise UserError("not JSON", file=store.join(name), found=str(e)[:120]) from e
    if not isinstance(found, dict):
        raise UserError("not a JSON object", file=store.join(name), found=type(found).__name__)
    return found
