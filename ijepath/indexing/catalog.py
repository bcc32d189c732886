"""Reads the anchor catalog, a JSON manifest and parquet shards: columns, strata, opening, staleness.

Not here: writing it (ijepath.indexing.catalog_writer), and how training reads it (ijepath.plan).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ijepath.indexing.manifest import folder_of, resolve
from ijepath.profile import CATALOG_FIELDS, Profile, profile_from_dict
from pathray.errors import MissingFile, UserError
from pathray.store.records import check_seal, parse_record
from pathray.store.storage import Storage, digest_of

SCHEMA_VERSION = 1
STRATUM_KEY, UNKNOWN = "organ", "unknown"
SHARD_FOLDER = "anchors"
ABSENT = "no anchor catalog here"
KEYS = frozenset(
    ("schema_version", "profile", "profile_hash", "sampling_stratum_key", "requested_stratum_key", "total_anchors")
    + ("stratum_counts", "identity", "anchor_shards", "slide_index_path", "slide_index_sha256", "slides")
)

SCHEMA = pa.schema(
    [
        ("anchor_id", pa.string()),
        ("slide_id", pa.string()),
        ("profile_id", pa.string()),
        ("stratum_id", pa.string()),
        ("wsi_path", pa.string()),
        ("mask_path", pa.string()),
        ("center_x_level0", pa.int64()),
        ("center_y_level0", pa.int64()),
        ("tissue_fraction", pa.float32()),
        ("wsi_level0_spacing_mpp", pa.float64()),
        ("source_context_mpp", pa.float64()),
        ("source_target_mpp", pa.float64()),
        ("effective_context_mpp", pa.float64()),
        ("effective_target_mpp", pa.float64()),
        ("context_fov_um", pa.float64()),
        ("target_fov_um", pa.float64()),
        ("context_size_px", pa.int32()),
        ("target_size_px", pa.int32()),
        ("target_footprint_px", pa.int32()),
        ("context_size_level0", pa.int32()),
        ("target_size_level0", pa.int32()),
    ]
)


def stratum_key(key: str, metadata_columns: Sequence[str]) -> str:
    """The metadata column that strata come from, or "" if there is none (one stratum, "unknown").

    Only the default key may be absent: a manifest without `organ` is a cohort of one stratum. Others: UserError.
    """
    if key in metadata_columns:
        return key
    if key in ("", STRATUM_KEY):
        return ""
    message = "the slide manifest has no such metadata column to stratify by"
    raise UserError(message, key="sampling_stratum_key", found=key, expected=sorted(metadata_columns))


def stratum_of(slide: Mapping[str, Any], key: str) -> str:
    """The stratum of a slide: its metadata value, or "unknown"."""
    return str(slide.get(key) or UNKNOWN) if key else UNKNOWN


@dataclass(frozen=True)
class Catalog:
    """An open catalog: its manifest, checked, and its rows in order."""

    path: str
    manifest: dict[str, Any]
    profile: Profile

    @classmethod
    def open(cls, path: str, *, verify: bool = False) -> Catalog:
        """MissingFile if the catalog or a shard is missing; UserError for a newer version or an altered shard.

        `verify` reads every shard and compares digests.
        """
        store = Storage.of(folder_of(path))
        if not store.exists(os.path.basename(path)):
            raise MissingFile(ABSENT, file=path, expected="anchor_catalog_manifest.json")
        manifest = _parse(store.read_bytes(os.path.basename(path)), path)
        for shard in manifest["anchor_shards"]:
            if not store.exists(shard["path"]):
                raise MissingFile(
                    "a shard of the anchor catalog is missing", file=resolve(shard["path"], folder_of(path))
                )
            if verify and (found := hashlib.sha256(store.read_bytes(shard["path"])).hexdigest()) != shard["sha256"]:
                file, expected = resolve(shard["path"], folder_of(path)), shard["sha256"]
                raise UserError("a shard of the anchor catalog was altered", file=file, found=found, expected=expected)
        return cls(path, manifest, profile_from_dict(manifest["profile"], path))

    @property
    def total_anchors(self) -> int:
        return int(self.manifest["total_anchors"])

    @property
    def slide_index_path(self) -> str:
        return resolve(self.manifest["slide_index_path"], folder_of(self.path))

    def batches(self, columns: Sequence[str] | None = None, batch_size: int = 2048) -> Iterator[pa.RecordBatch]:
        """The catalog's rows in order, `batch_size` at a time; memory stays at one row group."""
        store = Storage.of(folder_of(self.path))
        for shard in self.manifest["anchor_shards"]:
            file = store.read_local(shard["path"], partial(self._open_shard, shard=shard))
            yield from file.iter_batches(batch_size, columns=list(columns) if columns else None)

    def _open_shard(self, local: Path, shard: Mapping[str, Any]) -> pq.ParquetFile:
        """Open a shard. UserError if its digest changed."""
        if (found := digest_of(local)) != shard["sha256"]:
            file, expected = resolve(shard["path"], folder_of(self.path)), shard["sha256"]
            raise UserError("a shard of the anchor catalog was altered", file=file, found=found, expected=expected)
        return pq.ParquetFile(str(local), memory_map=True)


def _parse(data: bytes, path: str) -> dict[str, Any]:
    manifest = parse_record(data, path, "anchor catalog manifest")
    version = manifest.get("schema_version")
    if isinstance(version, int) and version > SCHEMA_VERSION:
        message = "the anchor catalog was written by a newer version"
        raise UserError(message, file=path, key="schema_version", found=version, expected=SCHEMA_VERSION)
    if lacking := sorted(KEYS - manifest.keys()):
        raise UserError("not an anchor catalog manifest", file=path, key=lacking[0], found=sorted(manifest))
    check_seal(manifest, path, "anchor catalog manifest", KEYS)
    return manifest


def stale_reason(path: str, profile: Profile, slide_index: str, sampling_stratum_key: str = STRATUM_KEY) -> str:
    """Why the catalog at `path` must be built (again) for this profile and slide index; "" if it is current."""
    try:
        catalog = Catalog.open(path)
    except MissingFile as error:
        return "none yet" if error.message == ABSENT else str(error)
    except UserError as error:
        return str(error)
    recorded = catalog.manifest
    if recorded["profile_hash"] != profile.catalog_hash():
        old, new = recorded["profile"], profile.as_dict()
        changed = [f"{k} {old.get(k)!r} -> {new[k]!r}" for k in CATALOG_FIELDS if old.get(k) != new[k]]
        return f"the profile changed: {', '.join(changed)}"
    if recorded["slide_index_sha256"] != file_sha256(slide_index):
        return f"the slide index changed: {slide_index}"
    if sampling_stratum_key not in (recorded["sampling_stratum_key"], recorded["requested_stratum_key"]):
        return f"the stratum key changed: {recorded['requested_stratum_key']} -> {sampling_stratum_key}"
    return ""


def is_current(path: str, profile: Profile, slide_index: str, sampling_stratum_key: str = STRATUM_KEY) -> bool:
    """Whether a build from these inputs would write the catalog at `path`."""
    return not stale_reason(path, profile, slide_index, sampling_stratum_key)


def file_sha256(path: str) -> str:
    """Digest of a file. MissingFile if there is none."""
    store, name = Storage.of(folder_of(path)), os.path.basename(path)
    if not store.exists(name):
        raise MissingFile("no slide index here", file=path)
    return hashlib.sha256(store.read_bytes(name)).hexdigest()
