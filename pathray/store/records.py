"""Small internal JSON files, sealed with a digest, so that damage is an error that names the file.

A flipped bit usually leaves valid JSON with a different number; the seal detects it. Not here: the records' meaning.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pathray.errors import UserError
from pathray.store.storage import digest_bytes

SEAL = "digest"


def parse_record(data: bytes, where: str, what: str, remedy: str | None = None) -> dict[str, Any]:
    """The JSON object in `data`. UserError naming the file `where` if there is none.

    `what` describes the file; `remedy` is what the error gives as expected.
    """
    try:
        record = json.loads(data)
    except (ValueError, RecursionError) as e:  # also bytes that are not UTF-8
        raise UserError(f"invalid or damaged {what}", file=where, found=str(e)[:200], expected=remedy) from e
    if not isinstance(record, dict):
        found, expected = type(record).__name__, remedy or "a JSON object"
        raise UserError(f"invalid or damaged {what}", file=where, found=found, expected=expected)
    return record


def add_seal(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record with its own digest added. Values must be plain, as returned by `json.loads`."""
    assert SEAL not in record
    return {**record, SEAL: digest(record)}


def digest(record: Mapping[str, Any]) -> str:
    """sha256 of the record's canonical JSON without its seal."""
    body = {key: value for key, value in record.items() if key != SEAL}
    return digest_bytes(json.dumps(body, sort_keys=True, separators=(",", ":")).encode())


def text(record: Mapping[str, Any]) -> bytes:
    """Readable strict JSON with sorted keys."""
    return json.dumps(record, indent=1, sort_keys=True, allow_nan=False).encode()


def check_seal(
    record: Mapping[str, Any], where: str, what: str, keys: frozenset[str] | None = None, remedy: str | None = None
) -> None:
    """UserError if the record does not match its digest.

    Older records have no seal; they may have no keys other than `keys`, so that a record whose seal's name was damaged
    does not pass as one.
    """
    if SEAL not in record and keys is not None and (unknown := sorted(record.keys() - keys)):
        raise UserError(f"the {what} is damaged", file=where, key=unknown[0], expected=remedy or sorted(keys))
    if SEAL in record and record[SEAL] != digest(record):
        raise UserError(
            f"the {what} was altered or is damaged", file=where, key=SEAL, found=record[SEAL], expected=remedy
        )
