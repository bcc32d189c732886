"""Files of a published encoder → an encoder artifact with its preprocessing, digests, licence and source.

Not here: the tables (pathray.features.published.models), what is done with an artifact (pathray.features.encoder).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from pathray.errors import UserError
from pathray.features.encoder import UNIT_RANGE
from pathray.features.identity import version
from pathray.features.kinds import OWN_POOLINGS
from pathray.features.published.convert import build, convert
from pathray.features.published.files import Files, Weights, find_files, is_torchscript, read_weights
from pathray.features.published.hubs import HF, TIMM, fetch_folder, fetch_timm
from pathray.features.published.identify import identify
from pathray.features.published.models import Published, model_of
from pathray.features.published.programs import ONNX, read_program
from pathray.store.artifact import ENCODER, IMPORTED, POOLED, PROGRAM
from pathray.store.storage import Storage, digest_of
from pathray.urls import public

if TYPE_CHECKING:
    from torch import nn

log = logging.getLogger(__name__)
SCIENCE = "published"
NEEDED = ("size_px", "mean", "std", "mpp")  # of a program, which does not say how its images look


@dataclass(frozen=True)
class Given:
    """What the user says of the encoder; None: as its model's row has it. `mean` and `std` of pixels in 0 … 1."""

    model: str | None = None
    size_px: int | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    mpp: float | None = None
    interpolation: str | None = None
    licence: str | None = None
    source: str | None = None


@dataclass(frozen=True)
class Imported:
    """An encoder that was read: the network and what its artifact says of it."""

    network: nn.Module
    facts: Mapping[str, Any]
    provenance: Mapping[str, Any]

    def save(self, folder: str) -> dict[str, Any]:
        """Write the artifact into `folder` (path or URL), replacing one that is there; returns the description."""
        kind = ENCODER if "vit" in self.facts else IMPORTED
        return kind.save(folder, self.network, self.facts, self.provenance)


def read_encoder(weights: str, given: Given) -> Imported:
    """The encoder at a path or URL (a file, or a folder as it comes from a hub), or ``hf:OWNER/NAME``, ``timm:NAME``.

    Raises MissingFile, and UserError naming file and parameter for weights that are not, wholly and in every shape,
    those of a known model or of `given.model`; for a program, also where `given` lacks a key that it needs.
    """
    if weights.startswith(TIMM):
        return _published(fetch_timm(weights), weights, {}, given, weights)
    files = find_files(fetch_folder(weights) if weights.startswith(HF) else weights)
    source = weights if weights.startswith(HF) else public(files.path)
    if kind := _program_kind(files):
        return _program(files, kind, given, source)
    return _published(read_weights(files), files.path, files.config, given, source)


def _published(weights: Weights, place: str, config: Mapping[str, Any], given: Given, source: str) -> Imported:
    row = model_of(given.model) if given.model else identify(weights.tensors, f"{place} {source}", config)
    if not given.model:
        log.info("the parameters are those of %s (%s)", row.name, row.hub)
    network = build(row, convert(row, weights.tensors, place))
    _warn_of_other_numbers(row, config, given)
    preprocessing = _preprocessing(row, given)
    common = {"preprocessing": preprocessing, "mpp": preprocessing["mpp"], "science": SCIENCE}
    vit = _plain(row)
    if row.pool is None:
        facts = {"architecture": "vit", "vit": vit, **common}
    else:
        facts = {"architecture": POOLED, "network": {"vit": vit, "pool": row.pool}, **common}
    about = {"model": row.name, "hub": row.hub, "guessed": not given.model, "unverified": list(row.unverified)}
    return Imported(network, facts, about | _provenance(weights.digests, given, source, row.licence))


def _plain(row: Published) -> dict[str, Any]:
    from pathray.nn.vit import ViTConfig

    return asdict(ViTConfig(**row.vit()))


def _preprocessing(row: Published, given: Given) -> dict[str, Any]:
    size = given.size_px or row.size
    if size % row.patch:
        expected = f"a multiple of {row.patch}"
        raise UserError(f"not a size of {row.name}'s images", key="size_px", found=size, expected=expected)
    if size != row.size:
        log.info("positions of %d pixels are interpolated to %d", row.size, size)
    return {
        "layout": "NCHW",
        "mean": list(given.mean or row.mean),
        "std": list(given.std or row.std),
        "range": list(UNIT_RANGE),
        "size": size,
        "mpp": given.mpp or row.mpp,
        "interpolation": given.interpolation or row.interpolation,
        "pooling": row.pooling,
    }


def _warn_of_other_numbers(row: Published, config: Mapping[str, Any], given: Given) -> None:
    """Log where the files' config has another mean or std than the model's card, which is taken."""
    said = config.get("pretrained_cfg", config)
    for key, own in (("mean", row.mean), ("std", row.std)):
        other = said.get(key) if isinstance(said, Mapping) else None
        if other is not None and getattr(given, key) is None and list(other) != list(own):
            log.warning("config.json says %s %s; the card of %s says %s, which is taken", key, other, row.name, own)


def _program_kind(files: Files) -> str | None:
    """`onnx` or `torchscript`, or None for weights."""
    if len(files.names) != 1 or files.names[0].endswith(".safetensors"):
        return None
    if files.names[0].endswith(ONNX):
        return "onnx"
    store = Storage.of(files.folder)
    return "torchscript" if store.read_local(files.names[0], is_torchscript) else None


def _program(files: Files, kind: str, given: Given, source: str) -> Imported:
    for key in NEEDED:
        if getattr(given, key) is None:
            message = f"a {kind} program does not say how its images look"
            raise UserError(message, file=files.path, key=key, expected=f"{key}=…")
    if given.model:
        message = "a program is not a published model"
        raise UserError(message, file=files.path, key="model", found=given.model, expected="without model=")
    store, size = Storage.of(files.folder), int(given.size_px or 0)
    (program, dim), digest = store.read_local(
        files.names[0], lambda local: (read_program(local, files.path, kind, size), digest_of(local))
    )
    preprocessing = {
        "layout": "NCHW", "mean": list(given.mean or ()), "std": list(given.std or ()), "range": list(UNIT_RANGE),
        "size": size, "mpp": given.mpp, "interpolation": given.interpolation or "area",
        "pooling": OWN_POOLINGS[PROGRAM],
    }  # fmt: skip
    network = {"format": kind, "bytes": program.program.numel(), "dim": dim}
    facts = {
        "architecture": PROGRAM, "network": network, "preprocessing": preprocessing, "mpp": given.mpp,
        "science": SCIENCE,
    }  # fmt: skip
    return Imported(program, facts, {"model": kind} | _provenance({files.names[0]: digest}, given, source, None))


def _provenance(digests: Mapping[str, str], given: Given, source: str, licence: str | None) -> dict[str, Any]:
    """sha256 of the files that were read, where they are from, and the terms of their use."""
    return {
        "files": dict(digests),
        "source": given.source or source,
        "licence": given.licence or licence or "not stated",
        "pathray": version(),
    }
