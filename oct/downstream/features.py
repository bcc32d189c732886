"""Features of a frozen encoder, computed once per volume and kept: the mean token, and all tokens where they are asked.

A folder per encoder, weights and grid; a file per volume, named after what it was computed from. So a killed job goes
on where it was, and another table of labels finds what is there. Not here: the processes that compute
(ray_jobs.oct_downstream.features), what is fitted to features (oct.downstream.probing).
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from oct.cache import VolumeCache
from oct.downstream.preprocess import load_encoder, pool_tokens
from oct.encoding.encoder import VolumeEncoder
from oct.plan import manifest_spacing
from pathray.device import Device
from pathray.errors import MissingFile, UnreadableUnit, UserError
from pathray.store.artifact import describe
from pathray.store.outages import read_through_outages, through_outages
from pathray.store.storage import Storage
from pathray.urls import public

VERSION = 1
Singles = npt.NDArray[np.float32]
Row = dict[str, Any]


@dataclass(frozen=True)
class FeatureSource:
    """Which features: of the encoder in `artifact` with these `weights`; with tokens pooled by `pool`, None: without.

    `root`: where the volumes are. `folder`: below which features are kept.
    """

    artifact: str
    weights: str
    seed: int
    pool: tuple[int, int, int] | None
    root: str
    folder: str
    cache_dir: str | None = None
    cache_gb: float = 50.0

    def store(self) -> Storage:
        """The folder of these features."""
        description = describe(self.artifact)
        facts = {
            "version": VERSION,
            "encoder": description["sha256"] if self.weights == "pretrained" else ["random", self.seed],
            "vit": description["vit"],
            "preprocessing": description["preprocessing"],
            "pool": self.pool,
        }
        name = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24]
        return Storage.of(self.folder).at(name)

    def name_of(self, row: Row) -> str:
        """The file of a volume: another one when the volume's file or its spacing is another."""
        facts = [row["path"], row["state"], manifest_spacing(row)]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24] + ".npz"


@dataclass(frozen=True)
class Features:
    """mean `[V, D]`, NaN for a volume that could not be read; tokens: `[N, D]` float16 of each volume, if asked;
    failed: path and reason of those."""

    mean: Singles
    tokens: list[npt.NDArray[np.float16]] | None
    failed: list[tuple[str, str]]

    @property
    def readable(self) -> npt.NDArray[np.bool_]:
        return np.asarray(np.isfinite(self.mean).all(axis=1))


@dataclass(frozen=True)
class Compute:
    """Called in the process that computes: gives the function that makes and keeps the features of a volume's row, and
    returns why it could not (empty: it did)."""

    source: FeatureSource
    kind: str
    threads: int

    def __call__(self) -> Callable[[Row], str]:
        torch.set_num_threads(self.threads)
        source, device = self.source, Device.of(self.kind)
        encoder = VolumeEncoder(*load_encoder(source.artifact, source.weights, source.seed), device)
        store, cache = source.store(), VolumeCache.of(source.cache_dir, source.cache_gb)

        def make(row: Row) -> str:
            try:
                read = partial(self.arrays, encoder, cache, row)
                arrays = read_through_outages(read, "the storage of volumes")
            except UnreadableUnit as e:
                return f"{e.reason} {e.detail}".strip()
            data = io.BytesIO()
            np.savez(data, **arrays)  # type: ignore[arg-type]  # numpy's stub takes its own keyword first
            through_outages(lambda: store.write_bytes(source.name_of(row), data.getvalue()), "the features")
            return ""

        return make

    def arrays(self, encoder: VolumeEncoder, cache: VolumeCache, row: Row) -> dict[str, npt.NDArray[Any]]:
        path = f"{self.source.root.rstrip('/')}/{row['path']}"
        state = str(row["state"])
        sampled = encoder.given.read(path, manifest_spacing(row), lambda name: cache.read(name, state))
        tokens = encoder.all_tokens(sampled)
        out: dict[str, npt.NDArray[Any]] = {"mean": encoder.pool(tokens)[0].cpu().numpy()}
        if self.source.pool is not None:
            pooled = pool_tokens(tokens[:, encoder.vit.num_prefix :], encoder.grid(sampled), self.source.pool)
            out["tokens"] = pooled[0].cpu().numpy().astype(np.float16)
        return out


def check_size(source: FeatureSource, volumes: int, most_gb: float) -> None:
    """UserError when the tokens of all `volumes` need more than `most_gb` of memory."""
    if source.pool is None:
        return
    vit = describe(source.artifact)["vit"]
    grid = [side // patch for side, patch in zip(vit["img_size"], vit["patch_size"], strict=True)]
    tokens = prod(-(-n // p) for n, p in zip(grid, source.pool, strict=True))
    gigabytes = 2e-9 * volumes * tokens * int(vit["dim"])
    if gigabytes > most_gb:
        found = f"{gigabytes:.0f} GB for {volumes:,} volumes of {tokens:,} tokens"
        expected = f"at most probe.most_gb={most_gb:g}: a larger probe.pool such as [1,4,4], or probe.attentive=false"
        raise UserError(
            "the attentive probe keeps all tokens in memory", key="probe.pool", found=found, expected=expected
        )


def missing_rows(source: FeatureSource, rows: Sequence[Row]) -> list[Row]:
    """The volumes whose features are not kept yet."""
    there = set(source.store().list())
    return [row for row in rows if source.name_of(row) not in there]


def load_features(source: FeatureSource, rows: Sequence[Row], failed: dict[str, str]) -> Features:
    """The features of all rows; `failed` are the reasons of those that have none, by path."""
    store = source.store()
    means: list[Singles | None] = []
    tokens: list[npt.NDArray[np.float16]] = []
    for row in rows:
        if row["path"] in failed:
            means.append(None)
            tokens.append(np.zeros((0, 0), np.float16))
            continue
        arrays = _read(store, source.name_of(row))
        means.append(arrays["mean"])
        tokens.append(arrays.get("tokens", np.zeros((0, 0), np.float16)))
    known = next((mean for mean in means if mean is not None), None)
    if known is None:
        found = next(iter(failed.items()), ("", ""))
        raise UserError("no labelled volume can be read", file=found[0], found=found[1], expected="volumes")
    none = np.full_like(known, np.nan)
    mean = np.stack([none if m is None else m for m in means])
    listed = [(row["path"], failed[row["path"]]) for row in rows if row["path"] in failed]
    return Features(mean, tokens if source.pool is not None else None, listed)


def check_readable(features: Features, most: float, index: str) -> None:
    """UserError when more than this share of the volumes could not be read."""
    share = len(features.failed) / len(features.mean)
    if share > most:
        path, reason = features.failed[0]
        found = f"{len(features.failed)} of {len(features.mean)}, such as {path}: {reason}"
        message, expected = "too many volumes cannot be read", f"at most {most:g} of them"
        raise UserError(message, file=public(index), key="data.max_corrupt_fraction", found=found, expected=expected)


def _read(store: Storage, name: str) -> dict[str, npt.NDArray[Any]]:
    """The arrays of a file. UserError, naming it, when it is damaged."""
    try:
        with np.load(io.BytesIO(store.read_bytes(name)), allow_pickle=False) as arrays:
            return {key: arrays[key] for key in arrays.files}
    except MissingFile:
        raise
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile) as e:
        message, expected = "the features of a volume are damaged", "the file removed: they are computed again"
        raise UserError(message, file=store.join(name), found=str(e)[:200], expected=expected) from e
