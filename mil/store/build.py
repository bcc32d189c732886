"""Builds a feature store from bags, so that many tasks may write at a time.

    headers = map(read_header, sources)
    with StoreBuild(folder, settings, headers) as build:
        build.finish(map(write_slide, build.places))

A store appears whole or not at all; until then an older one stays readable. Not here: how tasks run in parallel
(ray_jobs.build_store), which slides are listed.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa

from mil.store.format import (
    COORD_BYTES,
    DESCRIPTION,
    MEANS,
    SCHEMA,
    SCHEMA_VERSION,
    SLIDES,
    coords_file,
    features_file,
)
from mil.store.places import BuildSettings, Header, lay_out
from mil.store.write import Written
from pathray.errors import UserError
from pathray.store.atomic import replace_folder
from pathray.store.sealed_parquet import to_bytes


class StoreBuild:
    """A store while it is built, in a hidden folder beside its own. Leaving the block without `finish` removes it."""

    def __init__(self, folder: str, settings: BuildSettings, headers: Sequence[Header]) -> None:
        self.target, self.settings, self.headers = Path(folder).absolute(), settings, list(headers)
        self.partial = self.target.with_name(f".{self.target.name}-{uuid.uuid4().hex[:8]}")
        self.places = lay_out(self.headers, str(self.partial), settings)
        if not self.places:
            found = f"{len(self.headers)} listed, none readable"
            raise UserError("no bag can be stored", file=folder, found=found, expected="at least one readable bag")

    def __enter__(self) -> StoreBuild:
        self.partial.mkdir(parents=True)
        width = self.places[0].dim * np.dtype(self.settings.dtype).itemsize
        for chunk in range(self.places[-1].chunk + 1):
            rows = max(p.start + p.rows for p in self.places if p.chunk == chunk)
            for name, size in ((features_file(chunk), rows * width), (coords_file(chunk), rows * COORD_BYTES)):
                with open(self.partial / name, "wb") as file:
                    file.truncate(size)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shutil.rmtree(self.partial, ignore_errors=True)

    def finish(self, written: Iterable[Written], *, facts: Mapping[str, Any] | None = None) -> list[Written]:
        """Write the index and put the store in its place; returns what was written, failures too. `facts` are added to
        the description. UserError if no slide could be written."""
        found = list(written)
        good = [one for one in found if one.row is not None]
        if not good:
            raise UserError("no bag can be stored", file=str(self.target), found=found[0].error)
        table = pa.Table.from_pylist([dict(one.row or {}) for one in good], schema=SCHEMA)
        (self.partial / SLIDES).write_bytes(to_bytes(table))
        np.save(self.partial / MEANS, np.stack([one.mean for one in good if one.mean is not None]), allow_pickle=False)
        digest = hashlib.sha256("\n".join(f"{s} {d}" for s, d in _pairs(table)).encode()).hexdigest()
        description = {
            "schema_version": SCHEMA_VERSION,
            "dim": self.places[0].dim,
            "slides": len(good),
            "rows": int(sum(one.row["rows"] for one in good if one.row)),
            "sha256": digest,
            "settings": asdict(self.settings),
            **(facts or {}),
        }
        (self.partial / DESCRIPTION).write_text(json.dumps(description, indent=1, sort_keys=True, allow_nan=False))
        replace_folder(self.partial, self.target)
        return found


def _pairs(table: pa.Table) -> list[tuple[str, str]]:
    return list(zip(table["slide_id"].to_pylist(), table["sha256"].to_pylist(), strict=True))
