"""Chooses volumes to look at, and reads each as training does: as stored, on the grid, augmented, with its masks.

Volumes come from an index or straight from a manifest, in a random order that the seed fixes. Not here: which planes of
a volume are shown (oct.pictures.views), drawing (oct.pictures.slides).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from oct.cache import VolumeCache
from oct.config import RunConfig
from oct.dicom.file import DicomFile, open_dicom
from oct.dicom.frames import iterate_frames
from oct.dicom.resample import CENTRE, read_volume
from oct.indexing.file_lists import select
from oct.indexing.index_file import read_index
from oct.indexing.manifest import Spacing, of_devices, read_manifest
from oct.masks import MaskSampler
from oct.pictures.views import Views, grid_views, stored_views
from oct.plan import manifest_spacing
from oct.volume import Sampled, VolumeHeader
from pathray.data.order import rng
from pathray.errors import UserError
from pathray.store.storage import file_state

KINDS = ("block", "random", "vjepa")


@dataclass(frozen=True)
class Origin:
    """A file to read, and what its list says of it. `path` is below the root, `url` the whole path."""

    path: str
    url: str
    person: str
    device: str
    region: str = ""
    laterality: str = ""  # of the manifest
    spacing_mm: Spacing = (None, None, None)


@dataclass(frozen=True)
class TokenMask:
    """One mask of a volume. hidden: bool `[tokens of z, of y, of x]`."""

    kind: str
    title: str
    hidden: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class VolumeSample:
    """A volume in the three states that are drawn, and masks for its augmented state.

    augmented: float32 `[D, H, W]`, 0 where there is no image. image_share: of the grid's voxels.
    """

    origin: Origin
    header: VolumeHeader
    sampled: Sampled
    augmented: npt.NDArray[np.float32]
    stored: Views
    on_grid: Views
    as_trained: Views
    masks: tuple[TokenMask, ...]
    left_out: tuple[str, ...]  # kinds of masks that this grid does not allow, and why

    @property
    def image_share(self) -> float:
        shape, inside = self.sampled.image.shape, self.sampled.inside
        return float(np.prod((inside[:, 1] - inside[:, 0]) / np.array(shape)))

    @property
    def eye(self) -> str:
        """The laterality as list and header say it; never assumed."""
        listed, read = self.origin.laterality, self.header.laterality
        if listed and read and listed != read:
            return f"eye not certain: manifest {listed}, header {read}"
        return {"R": "right eye (OD)", "L": "left eye (OS)"}.get(listed or read, "eye not known")


def find_origins(config: RunConfig) -> list[Origin]:
    """The volumes of `data.index` (accepted ones), or the files of `data.manifest`, of `data.devices` and the persons
    of `data.split_file`. UserError without either, and where nothing is left."""
    data = config.data
    if data.index:
        index = read_index(data.index)
        root, source = data.gcs_root or index.root, data.index
        found = [_of_index(row, root) for row in select(index, devices=data.devices).to_pylist()]
    elif data.manifest:
        manifest = of_devices(read_manifest(data.manifest, data.gcs_root or ""), data.devices)
        root, source = manifest.root, data.manifest
        found = [
            Origin(r.path, _join(root, r.path), r.person, r.device, r.region, r.laterality, r.spacing_mm)
            for r in manifest.rows
        ]
    else:
        expected = "data.manifest=manifest.tsv, or data.index=volumes.parquet"
        raise UserError("no volumes to look at", key="data.manifest", expected=expected)
    return _of_split(found, config, source)


def shuffle(origins: Sequence[Origin], seed: int) -> list[Origin]:
    """The volumes in the random order of `seed`."""
    return [origins[i] for i in rng(seed, "preview", 0).permutation(len(origins)).tolist()]


def read_sample(config: RunConfig, origin: Origin, number: int) -> VolumeSample:
    """The volume of `origin`, its centre where it exceeds the grid; augmentation and masks are those of `number`.

    UnreadableUnit: the file cannot be read, or is no volume, as oct.dicom.resample.read_volume says.
    """
    cache, kept = VolumeCache.of(config.data.cache_folder, config.data.cache_gb), list[bytes]()

    def read(url: str) -> bytes:
        kept.append(cache.read(url, file_state(url) if cache.folder else ""))
        return kept[-1]

    sampled, header = read_volume(origin.url, config.data.grid, CENTRE, origin.spacing_mm, read)
    frames = partial(_stored_frames, open_dicom(kept[-1], origin.url), header)
    augmented = augment(config, sampled, number)
    masks, left_out = draw_masks(config, number)
    box = np.zeros(sampled.image.shape, bool)
    box[tuple(slice(first, last) for first, last in sampled.inside)] = True
    return VolumeSample(
        origin,
        header,
        sampled,
        augmented,
        stored_views(frames(), header),
        grid_views(sampled.image.astype(np.float32), box, sampled.spacing_mm),
        grid_views(augmented, augmented != 0, sampled.spacing_mm),
        tuple(masks),
        tuple(left_out),
    )


def augment(config: RunConfig, sampled: Sampled, number: int) -> npt.NDArray[np.float32]:
    """float32 `[D, H, W]`: the volume as the encoder gets it, with the draws of position `number`."""
    import torch

    from oct.augment import Volumes, count_draws

    draws = rng(config.data.seed, "augment", number, 0).random(count_draws(config), np.float32)
    image, inside = torch.from_numpy(sampled.image)[None], torch.from_numpy(sampled.inside)[None]
    volumes = Volumes(config.augment, config.data.spacing_mm)
    out: npt.NDArray[np.float32] = volumes(image, inside, torch.from_numpy(draws)[None])[0, 0].numpy()
    return out


def draw_masks(config: RunConfig, number: int) -> tuple[list[TokenMask], list[str]]:
    """Masks of every kind for position `number`, the config's kind first, and what the grid does not allow. UserError
    if that is the config's own kind."""
    masks, left_out = list[TokenMask](), list[str]()
    for kind in sorted(KINDS, key=lambda kind: kind != config.mask.kind):
        own = replace(config, mask=replace(config.mask, kind=kind))
        try:
            sampler = MaskSampler.of(own)
        except UserError as e:
            if kind == config.mask.kind:
                raise
            left_out.append(f"{kind}: {e.message}")
            continue
        drawn = sampler.sample(rng(config.data.seed, "masks", number, 0))
        for i in range(sampler.masks):
            hidden = np.zeros(int(np.prod(sampler.grid)), bool)
            hidden[drawn[f"target_{i}"]] = True
            masks.append(TokenMask(kind, _title(kind, i), hidden.reshape(sampler.grid)))
    return masks, left_out


def _title(kind: str, number: int) -> str:
    return f"vjepa, {('short', 'long')[number]} blocks" if kind == "vjepa" else kind


def _stored_frames(file: DicomFile, header: VolumeHeader) -> Iterator[npt.NDArray[Any]]:
    return iterate_frames(file, header)


def _of_index(row: dict[str, Any], root: str) -> Origin:
    names = ("person", "device", "region", "laterality_manifest")
    person, device, region, laterality = (str(row[name] or "") for name in names)
    return Origin(row["path"], _join(root, row["path"]), person, device, region, laterality, manifest_spacing(row))


def _of_split(found: list[Origin], config: RunConfig, source: str) -> list[Origin]:
    from oct.indexing.person_splits import read_persons

    if not config.data.split_file:
        return found
    persons = set(read_persons(config.data.split_file, config.data.split))
    if not (kept := [origin for origin in found if origin.person in persons]):
        message, expected = "no volume is of a person of this split", f"persons of {source}"
        raise UserError(message, file=config.data.split_file, key="data.split", found=config.data.split,
                        expected=expected)  # fmt: skip
    return kept


def _join(root: str, path: str) -> str:
    return f"{root.rstrip('/')}/{path}"
