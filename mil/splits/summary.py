"""The summary of a folder of splits: how they were made, digests, and counts per part. Strict JSON.

Not here: the files of splits (mil.splits.files).
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from mil.cohort import Cohort
from pathray.data.splits import SPLITS, Split
from pathray.errors import UserError
from pathray.store.storage import Storage

SUMMARY = "summary.json"
VARYING = ("fold", "outer", "inner", "repeat", "table", "sha256")  # in what a split says of itself
Rows = Sequence[tuple[str, str, str, str]]


def summarise(
    cohort: Cohort,
    splits: Mapping[str, Split],
    rows: Mapping[str, Rows],
    files: Mapping[str, str],
    digests: Mapping[str, str],
) -> bytes:
    """The file's content. `sha256` is over the digests of all splits, and so over all rows."""
    first = next(iter(splits.values())).meta
    made = {key: value for key, value in first.items() if key not in VARYING}
    counts = {
        name: {"file": files[name], "sha256": digests[name], "parts": _count(rows[name], bool(cohort.classes))}
        for name in splits
    }
    content = {
        "schema_version": 1,
        "scheme": made.pop("kind", "unknown"),
        "settings": made,
        "label": cohort.label,
        "slides": len(cohort.names),
        "patients": cohort.patients,
        "table_sha256": cohort.hash,
        "store_sha256": cohort.store_hash,
        "sha256": _digest(digests),
        "splits": counts,
    }
    return json.dumps(content, indent=1, allow_nan=False).encode() + b"\n"


def read_summary(store: Storage) -> dict[str, Any]:
    """UserError if it is not one, or if its digest is not that of the splits it names."""
    where = store.join(SUMMARY)
    try:
        found = json.loads(store.read_bytes(SUMMARY))
        digests = {str(name): str(entry["sha256"]) for name, entry in found["splits"].items()}
        files = [str(entry["file"]) for entry in found["splits"].values()]
        expected = found["sha256"]
    except (ValueError, LookupError, TypeError, AttributeError) as e:
        if isinstance(e, UserError):
            raise
        raise UserError("not a summary of splits", file=where, found=str(e)[:80], expected=SUMMARY) from e
    if (digest := _digest(digests)) != expected or any("/" in file for file in files):
        raise UserError("the summary was edited", file=where, key="sha256", found=digest, expected=expected)
    return dict(found)


def _digest(digests: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(list(digests.items())).encode()).hexdigest()


def _count(rows: Rows, classes: bool) -> dict[str, dict[str, Any]]:
    """Slides, patients and slides of each class, by part."""
    out = {}
    for part in SPLITS:
        own = [row for row in rows if row[3] == part]
        facts: dict[str, Any] = {"slides": len(own), "patients": len({row[1] for row in own})}
        out[part] = facts | ({"classes": dict(sorted(Counter(row[2] for row in own).items()))} if classes else {})
    return out
