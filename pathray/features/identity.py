"""A digest of everything that features depend on. Equal digests mean equal features, so finished work is skipped."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pathray.store.storage import digest_bytes

if TYPE_CHECKING:
    from pathray.features.encoder import EncoderSpec

EXTRACTION_VERSION = 1  # raise it when equal inputs give different features than before


def fingerprint(identity: Mapping[str, Any]) -> str:
    """sha256 of the canonical JSON of `identity` and the extraction version."""
    text = json.dumps({"extraction_version": EXTRACTION_VERSION, **identity}, sort_keys=True, allow_nan=False)
    return digest_bytes(text.encode())


def identity_of(source: Mapping[str, Any], spec: EncoderSpec, settings: Any, *more: str) -> dict[str, Any]:
    """Everything that features depend on: their source, the settings (with `more` of them) and the encoder."""
    how = ("resize", "pooling", "precision", "dtype", *more)
    chosen = {name: getattr(settings, name) for name in how} | {"pooling": spec.pooling(settings.pooling)}
    return {**source, "settings": chosen, "encoder": spec.identity()}


def version() -> str:
    """Of Pathray, for the provenance of features."""
    import importlib.metadata

    return importlib.metadata.version("pathray")
