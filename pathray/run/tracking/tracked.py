"""What trackers of experiments are told of a run: the numbers of its rows, and its config without secrets.

Not here: when and how (pathray.run.tracking.mlflow, pathray.run.tracking.wandb_mirror).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pathray.errors import MissingFile
from pathray.fingerprint import flatten
from pathray.store.metrics_log import TIME
from pathray.store.storage import Storage
from pathray.urls import public_text

SECRET = re.compile(r"token(?!s)|secret|passw|credential|api_?key|access_?key|private_?key|account_?key", re.IGNORECASE)
REDACTED = "(redacted)"


def read_if_changed(store: Storage, name: str, before: bytes | None) -> bytes | None:
    """The content of a file of rows; None where there is none, or when it is as `before`."""
    try:
        content = store.read_bytes(name)
    except MissingFile:
        return None
    return None if content == before else content


def numbers_of(row: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a row, without its time. Words and digests are not for charts."""
    return {k: v for k, v in row.items() if isinstance(v, int | float) and not isinstance(v, bool) and k != TIME}


def public_params(params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters under dotted names, without secrets, which are known by their names, and without logins and signatures
    of URLs. Numbers and None stay what they are; all else is text."""
    values = {key: value for key, (value, _) in flatten(params).items()}
    return {key: REDACTED if SECRET.search(key) else _public(value) for key, value in values.items()}


def _public(value: Any) -> Any:
    return value if value is None or isinstance(value, bool | int | float) else public_text(str(value))
