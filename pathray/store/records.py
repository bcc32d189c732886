"""Small JSON files of ours: damage is an error that names the file, and a digest of the record seals it.

A flipped bit mostly leaves JSON readable: without a seal it is another number. Not here: what the records mean.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pathray.errors import UserError
from pathray.store.storage import digest_bytes

SEAL = "digest"


def parsed(data: bytes, where: str, what: str, remedy: str | None = None) -> dict[str, Any]:
    """The JSON object in `data`. UserError naming the file `where` for anything else.

    what: what the file should be; remedy: what the error says is expected.
    """
    try:
        record = json.loads(data)
    except (ValueError, RecursionError) as e:  # also bytes that are no UTF-8
        raise UserError(f"this is no {what}, or a damaged one", file=where, found=str(e)[:200], expected=remedy) from e
    if not isinstance(record, dict):
        found, expected = type(record).__name__, remedy or "a JSON object"
        raise UserError(f"this is no {what}, or a damaged one", file=where, found=found, expected=expected)
    return record


def sealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record with a digest of itself. Values are plain ones, as `json.loads` gives them."""
    assert SEAL not in record
    return {**record, SEAL: digest(record)}


def digest(record: Mapping[str, Any]) -> str:
    """sha256 of the record's canonical JSON without its seal."""
    body = {key: value for key, value in record.items() if key != SEAL}
    return digest_bytes(json.dumps(body, sort_keys=True, separators=(",", ":")).encode())


def text(record: Mapping[str, Any]) -> bytes:
    """Strict JSON for people to read, keys sorted."""
    return json.dumps(record, indent=1, sort_keys=True, allow_nan=False).encode()


def check_seal(
    record: Mapping[str, Any], where: str, what: str, keys: frozenset[str] | None = None, remedy: str | None = None
) -> None:
    """UserError when the record's digest is not its own.

    Records of before the seal have none, and no other keys than `keys`: one whose seal was renamed by damage is not
    taken for such a one.
    """
    if SEAL not in record and keys is not None and (unknown := sorted(record.keys() - keys)):
        raise UserError(f"the {what} is damaged", file=where, key=unknown[0], expected=remedy or sorted(keys))
    if SEAL in record and record[SEAL] != digest(record):
        raise UserError(
            f"the {what} was altered or is damaged", file=where, key=SEAL, found=record[SEAL], expected=remedy
        )
