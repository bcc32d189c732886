"""Extracts one OCT volume into one bag per encoder: the file is read once, and put once on each grid. Without Ray.

A bag holds the volume's tokens, or its pooled features alone; see pathray.features.bags. Not here: which volumes to
extract and the table of all (ray_jobs.extract.volumes), the encoder (oct.encoding.encoder).
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from oct.downstream.preprocess import pool_tokens
from oct.encoding.encoder import Singles, VolumeEncoder, VolumeFeatures
from oct.indexing.manifest import Spacing
from oct.volume import AXES, Grid, Sampled, Triple, VolumeHeader
from pathray.data.watchdog import exit_after
from pathray.errors import UserError
from pathray.features.bags import BagWriter, open_h5
from pathray.features.identity import fingerprint, version
from pathray.features.inference import encoding_error
from pathray.features.read_bags import read_bag
from pathray.store.outages import read_through_outages
from pathray.urls import public
from pathray.wsi.backends.source import read_source

if TYPE_CHECKING:
    from pathray.device import Device
    from pathray.features.encoder import EncoderSpec

READING = 10  # reading and decoding a volume may take this many times the timeout of an image


@dataclass(frozen=True)
class VolumeSettings:
    """How volumes become features. All but the last determine the features."""

    pooling: str = "mean"
    precision: str = "fp32"
    dtype: str = "float32"
    tokens: bool = False  # keep the grid of tokens
    token_pool: tuple[int, int, int] = (1, 1, 1)  # tokens averaged per axis before

    batch_size: int = 1
    read_timeout_s: float = 120.0


@dataclass(frozen=True)
class VolumeJob:
    """A volume to extract. `about`: what the index says of it (path, person, eye, device, region). `spacing`: what its
    manifest said. `state` changes with the file. `bags` maps the requested encoders to the bags' paths."""

    volume_id: str
    url: str
    about: Mapping[str, str]
    spacing: Spacing = (None, None, None)
    state: str = ""
    bags: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class VolumeOutcome:
    """A line of the report: `status` ok, skipped or failed; `facts` as `facts_of` gives them; `pooled` `[D]` by
    encoder."""

    status: str
    error: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    pooled: Mapping[str, Singles] = field(default_factory=dict)
    seconds: float = 0.0


def bag_identity(job: VolumeJob, spec: EncoderSpec, settings: VolumeSettings) -> dict[str, Any]:
    """Everything that a bag's content depends on, from which its fingerprint is computed."""
    volume = {"volume_id": job.volume_id, "state": job.state, "about": dict(job.about), "spacing": list(job.spacing)}
    names = ("pooling", "precision", "dtype", "tokens")
    how: dict[str, Any] = {name: getattr(settings, name) for name in names}
    how["pooling"] = spec.pooling(settings.pooling)
    how |= {"token_pool": list(settings.token_pool)} if settings.tokens else {}
    return {"volume": volume, "settings": how, "encoder": spec.identity()}


def bag_fingerprint(job: VolumeJob, spec: EncoderSpec, settings: VolumeSettings) -> str:
    return fingerprint(bag_identity(job, spec, settings))


def extract_volume(
    job: VolumeJob,
    specs: Mapping[str, EncoderSpec],
    encoders: Mapping[str, VolumeEncoder],
    settings: VolumeSettings,
    device: Device,
) -> VolumeOutcome:
    """Write the bags of `job`. Raises UnreadableUnit for what is no volume, StorageError for the output and for storage
    that stays away, and EncodingError; an unfinished bag is never left behind."""
    began, pooled, facts = time.monotonic(), dict[str, Singles](), dict[str, Any]()
    read = _Once(job, settings.read_timeout_s * READING)
    for name, path in job.bags:
        encoder = encoders[name]
        sampled, header = read_through_outages(lambda e=encoder: read(e), "the storage of volumes")  # type: ignore[misc]
        try:
            features = encoder.encode(sampled, header)
        except Exception as e:
            raise encoding_error(e) from e
        facts = facts_of(job, header)
        _write_bag(path, job, name, specs[name], settings, features, facts)
        pooled[name] = features.pooled
    return VolumeOutcome("ok", facts.get("notes", ""), facts, pooled, time.monotonic() - began)


def facts_of(job: VolumeJob, header: VolumeHeader) -> dict[str, Any]:
    """What a table says of a volume: what the index knows, size, spacing in mm and its source per axis, and notes that
    concern the features."""
    geometry = header.geometry
    return {
        **job.about,
        **{f"spacing_{axis}_mm": mm for axis, mm in zip(AXES, geometry.spacing_mm, strict=True)},
        **{f"source_{axis}": source for axis, source in zip(AXES, geometry.sources, strict=True)},
        **{"frames": header.frames, "rows": header.rows, "columns": header.columns},
        "notes": "; ".join((*header.notes, *geometry.notes)),
    }


@dataclass
class VolumeTokens:
    """tokens `[T_slow, T_depth, T_scan, D]` of a volume; token_mm: their size per axis, NaN where it is not known;
    pooled `[D]`; about: where they are from."""

    tokens: npt.NDArray[Any]
    token_mm: Triple
    pooled: Singles
    about: dict[str, Any]


def read_tokens(path: str) -> VolumeTokens:
    """The grid of tokens in a bag that was extracted with tokens=true. MissingFile; UserError for another bag."""
    bag = read_bag(path)
    if "grid" not in bag.tile or math.prod(bag.tile["grid"]) != len(bag.features):
        raise UserError("not the tokens of a volume", file=path, key="grid", expected="a bag made with tokens=true")
    z, y, x = (float(mm) for mm in bag.tile["token_mm"])
    tokens = bag.features.reshape(*bag.tile["grid"], -1)
    return VolumeTokens(tokens, (z, y, x), read_pooled(path)[0], bag.provenance)


def read_pooled(path: str) -> tuple[Singles, dict[str, Any]]:
    """The pooled features `[D]` of a bag, and the facts of its volume."""
    with open_h5(path) as file:
        if "pooled" not in file:
            raise UserError("not the bag of a volume", file=path, found=sorted(file), expected="pooled")
        facts = json.loads(file.attrs["provenance"])["source"]["facts"]
        return np.asarray(file["pooled"], np.float32), facts


class _Once:
    """Reads a volume's file once, and puts it once on each grid."""

    def __init__(self, job: VolumeJob, timeout_s: float) -> None:
        self.job, self.timeout_s = job, timeout_s
        self.data: bytes | None = None
        self.known: dict[Grid, tuple[Sampled, VolumeHeader]] = {}

    def __call__(self, encoder: VolumeEncoder) -> tuple[Sampled, VolumeHeader]:
        given = encoder.given
        if given.grid not in self.known:
            with exit_after(self.timeout_s):
                self.known[given.grid] = given.read_with_header(self.job.url, self.job.spacing, self._bytes)
        return self.known[given.grid]

    def _bytes(self, url: str) -> bytes:
        if self.data is None:
            self.data = read_source(url)
        return self.data


def _write_bag(
    path: str,
    job: VolumeJob,
    name: str,
    spec: EncoderSpec,
    settings: VolumeSettings,
    features: VolumeFeatures,
    facts: Mapping[str, Any],
) -> None:
    import torch

    identity, grid = bag_identity(job, spec, settings), features.tokens.shape[:3]
    if settings.tokens:
        pool = tuple(min(p, n) for p, n in zip(settings.token_pool, grid, strict=True))
        flat = torch.from_numpy(features.tokens).flatten(0, 2)[None]
        rows = pool_tokens(flat, grid, pool)[0].numpy()
    else:
        rows, pool = features.pooled[None], grid
    shape = tuple(-(-n // p) for n, p in zip(grid, pool, strict=True))
    patch = np.array(spec.description["vit"]["patch_size"], np.int64) * pool
    sampled = features.sampled
    tile = {
        "name": job.volume_id,
        **({"grid": shape} if settings.tokens else {}),
        "token_voxels": patch,
        "token_mm": np.array(features.token_mm) * pool,
        "voxel_mm": sampled.spacing_mm,
        "voxels": sampled.image.shape,
        "inside": sampled.inside,
        "encoder": spec.name,
        "encoder_sha256": spec.description["sha256"],
        "preprocessing": json.dumps(spec.preprocessing, sort_keys=True),
        "pooling": spec.pooling(settings.pooling),
    }
    coords = np.array(list(product(*map(range, shape)))) * patch
    source = {"path": public(job.url), "facts": dict(facts)}
    bag = BagWriter(
        path,
        coords,
        rows.shape[1],
        dtype=settings.dtype,
        tile=tile,
        provenance={**identity, "source": source, "encoder_name": name, "pathray": version()},
        fingerprint=fingerprint(identity),
        pooled=features.pooled,
    )
    with bag:
        bag.write(0, rows)
