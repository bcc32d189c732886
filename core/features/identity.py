"""What features depend on, as one digest: equal identities, equal features, so that finished work can be skipped."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from core.storage import digest_bytes

EXTRACTION_VERSION = 1  # raised when equal inputs would give other features than before


def fingerprint(identity: Mapping[str, Any]) -> str:
    """sha256 of the canonical JSON of `identity`, the version of extraction included."""
    text = json.dumps({"extraction_version": EXTRACTION_VERSION, **identity}, sort_keys=True, allow_nan=False)
    return digest_bytes(text.encode())
