"""Writes the anchor catalog: slide by slide into zstd parquet shards, the JSON manifest last. Memory: one shard.

Rows are ordered by slide (index order), then raster; equal inputs give equal names and bytes. Shards are named by their
content, so that an older catalog stays whole until the new manifest replaces its own.

Not here: which anchors there are (ijepath.indexing.anchors) and reading (ijepath.indexing.catalog).
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ijepath.indexing.anchors import SlideAnchors
from ijepath.indexing.catalog import (
    SCHEMA,
    SCHEMA_VERSION,
    SHARD_FOLDER,
    STRATUM_KEY,
    file_sha256,
    stratum_key,
    stratum_of,
)
from ijepath.indexing.manifest import folder_of
from ijepath.profile import Profile
from pathray.errors import UserError
from pathray.store.records import add_seal, text
from pathray.store.storage import Storage

log = logging.getLogger(__name__)

ROWS_PER_SHARD = 1_000_000
ROWS_PER_GROUP = 1 << 16
REPORT_COLUMNS = ("slide_id", "status", "reason", "anchors", "detail")
DICTIONARY = [name for name in SCHEMA.names if name not in ("anchor_id", "center_x_level0", "tissue_fraction")]

Piece = tuple[SlideAnchors, int, int]  # a slide's anchors start…stop


def write_catalog(
    output: str,
    profile: Profile,
    results: Iterable[SlideAnchors],
    *,
    slide_index: str,
    metadata_columns: Sequence[str],
    sampling_stratum_key: str = STRATUM_KEY,
    rows_per_shard: int = ROWS_PER_SHARD,
) -> dict[str, Any]:
    """Write the catalog of `results` (in slide order) to the manifest path `output`, and return the manifest.

    Raises UserError for a stratum key that the index lacks, or if no slide has an anchor; an older catalog then does
    not change.
    """
    writer = CatalogWriter(output, profile, stratum_key(sampling_stratum_key, metadata_columns), rows_per_shard)
    reasons: Counter[str] = Counter()
    example = ""
    for anchors in results:
        writer.add(anchors)
        reasons[anchors.reason] += 1
        example = example or (f" ({anchors.slide['slide_id']}: {anchors.detail})" if anchors.detail else "")
    if not reasons[""]:
        raise UserError(
            f"no slide has an anchor{example}",
            file=slide_index,
            key=f"profile {profile.name}",
            found=", ".join(f"{n} x {reason}" for reason, n in sorted(reasons.items())) or "no slides",
            expected="at least one anchor: lower min_tissue_fraction or context_fov_um, or fix the masks",
        )
    origin = {
        "slide_index_path": _relative(slide_index, folder_of(output)),
        "slide_index_sha256": file_sha256(slide_index),
        "requested_stratum_key": sampling_stratum_key,
        "slides": reasons.total(),
    }
    return writer.close(origin)


def report_line(anchors: SlideAnchors) -> dict[str, Any]:
    """The report's row for one slide."""
    values = anchors.slide["slide_id"], anchors.status, anchors.reason, len(anchors), anchors.detail
    return dict(zip(REPORT_COLUMNS, values, strict=True))


def _relative(path: str, folder: str) -> str:
    if "://" in path or "://" in folder:
        return path if "://" in path else os.path.abspath(path)
    return os.path.relpath(os.path.abspath(path), folder)


@dataclass
class CatalogWriter:
    """Collects anchors slide by slide, writes a shard whenever one is full, and the manifest last.

    `output` is the path of the manifest JSON; shards go to `anchors/` next to it. Memory: one compressed shard and one
    row group.
    """

    output: str
    profile: Profile
    key: str  # "" for a single stratum
    rows_per_shard: int = ROWS_PER_SHARD
    shards: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        assert self.rows_per_shard >= 1
        self._store = Storage.of(folder_of(self.output))
        self._name = os.path.basename(self.output)
        self._identity = hashlib.sha256()
        self._pending: list[Piece] = []
        self._waiting = self._rows = 0
        self._counts: Counter[str] = Counter()
        self._buffer = io.BytesIO()
        self._parquet: pq.ParquetWriter | None = None

    def add(self, anchors: SlideAnchors) -> None:
        """Add the next slide, in index order."""
        if not len(anchors):
            return
        slide = anchors.slide
        facts = [slide["slide_id"], slide["wsi_level0_spacing_mpp"], stratum_of(slide, self.key), len(anchors)]
        self._identity.update(json.dumps(facts).encode())
        self._identity.update(np.stack([anchors.center_x, anchors.center_y]).astype("<i8").tobytes())
        start = 0
        while start < len(anchors):
            room = min(ROWS_PER_GROUP, self.rows_per_shard - self._rows) - self._waiting
            stop = min(len(anchors), start + room)
            self._pending.append((anchors, start, stop))
            self._waiting += stop - start
            if stop - start == room:
                self._flush_group()
            start = stop

    def close(self, extra: Mapping[str, Any]) -> dict[str, Any]:
        """Write the last shard and the manifest (with the keys of `extra`), and return the manifest."""
        self._flush_shard()
        counts: Counter[str] = Counter()
        for shard in self.shards:
            counts.update(shard["stratum_counts"])
        manifest = {
            "schema_version": SCHEMA_VERSION,
            "profile": self.profile.as_dict(),
            "profile_hash": self.profile.catalog_hash(),
            "sampling_stratum_key": self.key,
            "total_anchors": sum(counts.values()),
            "stratum_counts": dict(sorted(counts.items())),
            "identity": self._identity.hexdigest(),
            "anchor_shards": self.shards,
            **extra,
        }
        manifest = add_seal(manifest)
        self._store.write_bytes(self._name, text(manifest))
        self._clear()
        return manifest

    def _flush_group(self) -> None:
        if self._parquet is None:
            self._buffer = io.BytesIO()
            self._parquet = pq.ParquetWriter(self._buffer, SCHEMA, compression="zstd", use_dictionary=DICTIONARY)
        table = _table(self._pending, self.profile, self.key)
        self._parquet.write_table(table, row_group_size=ROWS_PER_GROUP)
        for anchors, start, stop in self._pending:
            self._counts[stratum_of(anchors.slide, self.key)] += stop - start
        self._rows += self._waiting
        self._pending, self._waiting = [], 0
        if self._rows == self.rows_per_shard:
            self._flush_shard()

    def _flush_shard(self) -> None:
        if self._pending:
            self._flush_group()
        if self._parquet is None:
            return
        self._parquet.close()
        self._parquet = None
        data = self._buffer.getvalue()
        digest = hashlib.sha256(data).hexdigest()
        path = f"{SHARD_FOLDER}/part-{len(self.shards):05d}-{digest[:12]}.parquet"
        self._store.write_bytes(path, data)
        counts = dict(sorted(self._counts.items()))
        self.shards.append({"path": path, "rows": self._rows, "sha256": digest, "stratum_counts": counts})
        self._counts, self._rows, self._buffer = Counter(), 0, io.BytesIO()

    def _clear(self) -> None:
        """Remove the shards that no manifest names. The catalog is valid even if this fails."""
        try:
            named = self._shards_in_use()
            for name in self._store.list(SHARD_FOLDER):
                path = f"{SHARD_FOLDER}/{name}"
                if name.startswith("part-") and name.endswith(".parquet") and path not in named:
                    self._store.remove(path)
        except UserError as e:  # includes StorageError
            log.warning("could not remove shards of an older catalog: %s", e)

    def _shards_in_use(self) -> set[str]:
        """Shards of this catalog, and of catalogs of other profiles whose manifests are in the same folder."""
        named = {shard["path"] for shard in self.shards}
        for name in self._store.list():
            if name.endswith(".json") and name != self._name:
                named |= set(_shards_in(self._store.read_bytes(name), self._store.join(name)))
        return named


def _shards_in(content: bytes, where: str) -> list[str]:
    """The shards that a JSON file names; none if it is no catalog manifest. UserError for a damaged file: it might name
    any shard, so none may be removed."""
    try:
        other = json.loads(content)
    except (ValueError, RecursionError) as e:
        raise UserError("a JSON file next to the catalog is damaged", file=where, found=str(e)[:200]) from e
    shards = other.get("anchor_shards") if isinstance(other, dict) else None
    return [str(s["path"]) for s in shards if isinstance(s, dict) and "path" in s] if isinstance(shards, list) else []


def _table(pieces: Sequence[Piece], profile: Profile, key: str) -> pa.Table:
    """The catalog's rows of some pieces: a slide's columns repeated, an anchor's columns concatenated."""
    counts = np.array([stop - start for _, start, stop in pieces])
    which = np.repeat(np.arange(len(pieces)), counts)

    def of_slide(values: list[Any], name: str) -> pa.Array:
        return pa.array(values, SCHEMA.field(name).type).take(pa.array(which))

    def of_anchor(name: str) -> np.ndarray[Any, Any]:
        return np.concatenate([getattr(anchors, name)[start:stop] for anchors, start, stop in pieces])

    slides = [anchors.slide for anchors, _, _ in pieces]
    spacings = [slide["wsi_level0_spacing_mpp"] for slide in slides]
    columns: dict[str, pa.Array] = {
        name: of_slide([slide[name] for slide in slides], name)
        for name in ("slide_id", "wsi_path", "mask_path", "wsi_level0_spacing_mpp")
    }
    columns["stratum_id"] = of_slide([stratum_of(slide, key) for slide in slides], "stratum_id")
    for name in ("source_context_mpp", "source_target_mpp"):
        columns[name] = of_slide([getattr(anchors, name) for anchors, _, _ in pieces], name)
    columns["context_size_level0"] = of_slide([profile.context_size_level0(m) for m in spacings], "context_size_level0")
    columns["target_size_level0"] = of_slide([profile.target_size_level0(m) for m in spacings], "target_size_level0")
    for name, value in _geometry(profile).items():
        columns[name] = pa.repeat(pa.scalar(value, SCHEMA.field(name).type), which.size)
    x, y = (pa.array(of_anchor(name)) for name in ("center_x", "center_y"))
    columns |= {"center_x_level0": x, "center_y_level0": y, "tissue_fraction": pa.array(of_anchor("tissue_fraction"))}
    columns["anchor_id"] = pc.binary_join_element_wise(columns["slide_id"], x.cast("string"), y.cast("string"), ":")
    return pa.table([columns[name] for name in SCHEMA.names], schema=SCHEMA)


def _geometry(profile: Profile) -> dict[str, Any]:
    return {
        "profile_id": profile.name,
        "effective_context_mpp": profile.context_effective_mpp,
        "effective_target_mpp": profile.target_effective_mpp,
        "context_fov_um": profile.context_fov_um,
        "target_fov_um": profile.target_fov_um,
        "context_size_px": profile.context_px,
        "target_size_px": profile.target_px,
        "target_footprint_px": profile.target_footprint_px,
    }
