"""``export.json``: what the files of an export take and give, checked and sealed. A server reads nothing else.

Not here: the model card for people (mil.export.model_card).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mil.artifact import Trained
from mil.export.formats import FILES, ONNX_PACKAGES, Run, open_format
from mil.export.parity import BATCHES, tolerance
from mil.export.predictor import SlidePredictor
from pathray.errors import MissingFile, UserError
from pathray.store.records import add_seal, check_seal, parse_record
from pathray.store.storage import Storage, digest_of

DESCRIPTION, CARD = "export.json", "model_card.md"
SCHEMA_VERSION = 1
MODEL, SLIDE_ENCODER = "mil", "slide_encoder"
KIND = "description of an exported model"


def describe(
    predictor: SlidePredictor, trained: Trained, folder: Path, differences: Mapping[str, Mapping[str, float]]
) -> dict[str, Any]:
    """The content of ``export.json`` for the files of `differences` (mil.export.parity) in a local folder."""
    target, description = trained.target, trained.description
    architectures = [one["model"] for one in description.get("members", [description])]
    record = {
        "schema_version": SCHEMA_VERSION,
        "kind": MODEL if predictor.with_head else SLIDE_ENCODER,
        "model": {
            "architectures": architectures,
            "parameters": sum(p.numel() for p in predictor.net.parameters()),
            "weights_sha256": description["sha256"],
        },
        "task": target.task if predictor.with_head else None,
        "label": target.label if predictor.with_head else None,
        "classes": list(target.classes) if predictor.with_head else [],
        "feature_width": target.dim,
        "encoder": description["encoder"] or None,
        "inputs": _inputs(predictor, target.dim),
        "outputs": [_output(one.name, one.shape, one.columns) for one in predictor.outputs],
        "files": {name: _file(folder / FILES[name]) for name in differences},
        "parity": _parity(differences),
        "provenance": dict(description["provenance"]),
        "versions": _versions(),
    }
    return add_seal(record)


@dataclass(frozen=True)
class Export:
    """An export whose description was checked: `description`, and where it is."""

    store: Storage
    description: Mapping[str, Any]

    def open(self, name: str) -> Run:
        """The file of a format as a function of features, mask and coords, after its digest was checked. UserError for
        a format that is not there, and for a file that was altered."""
        files = self.description["files"]
        if name not in files:
            where, expected = self.store.join(DESCRIPTION), " or ".join(files)
            raise UserError("this format was not exported", file=where, key="files", found=name, expected=expected)
        entry = files[name]

        def open_verified(file: Path) -> Run:
            if (found := digest_of(file)) != entry["sha256"]:
                where = self.store.join(entry["file"])
                raise UserError("the file was altered", file=where, found=found, expected=entry["sha256"])
            return open_format(name, file)

        return self.store.read_local(entry["file"], open_verified)


def read_export(folder: str) -> Export:
    """The export in a folder or URL. MissingFile without one, UserError if its description was altered or is newer."""
    store = Storage.of(folder)
    where = store.join(DESCRIPTION)
    try:
        record = parse_record(store.read_bytes(DESCRIPTION), where, KIND)
    except (MissingFile, NotADirectoryError) as e:
        raise MissingFile("no exported model here", file=folder, expected=f"{DESCRIPTION}, from export_mil") from e
    found = record.get("schema_version")
    if isinstance(found, int) and found > SCHEMA_VERSION:
        raise UserError("written by a newer version", file=where, found=found, expected=f"at most {SCHEMA_VERSION}")
    check_seal(record, where, KIND, frozenset())
    return Export(store, record)


def _inputs(predictor: SlidePredictor, width: int) -> list[dict[str, Any]]:
    return [
        _input("features", "float32", ["B", "N", width], "features of tiles by the encoder"),
        _input("mask", "bool", ["B", "N"], "true for a real tile; every slide needs one"),
        _input("coords", "float32", ["B", "N", 2], "upper left corners (x, y) of tiles in sides of a tile")
        | {"used": predictor.uses_coords},
    ]


def _input(name: str, dtype: str, shape: list[str | int], meaning: str) -> dict[str, Any]:
    dynamic = {str(i): axis for i, axis in enumerate(shape) if isinstance(axis, str)}
    return {"name": name, "dtype": dtype, "shape": shape, "dynamic_axes": dynamic, "meaning": meaning}


def _output(name: str, shape: tuple[str | int, ...], columns: tuple[str, ...]) -> dict[str, Any]:
    own = {"columns": list(columns)} if columns else {}
    dynamic = {str(i): axis for i, axis in enumerate(shape) if isinstance(axis, str)}
    return {"name": name, "dtype": "float32", "shape": list(shape), "dynamic_axes": dynamic, **own}


def _file(file: Path) -> dict[str, Any]:
    return {"file": file.name, "bytes": file.stat().st_size, "sha256": digest_of(file)}


def _parity(differences: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    names = sorted({name for found in differences.values() for name in found})
    return {
        "tiles": [list(lengths) for lengths in BATCHES],
        "allowed": {name: tolerance(name) for name in names},
        "largest": {name: dict(found) for name, found in differences.items()},
    }


def _versions() -> dict[str, str]:
    out = {}
    for name in ("pathray", "torch", *ONNX_PACKAGES):
        try:
            out[name] = version(name)
        except PackageNotFoundError:
            continue
    return out
