"""OCT volumes for a notebook or a DataLoader of one's own: a manifest in, normalised tensors out.

A thin face over the manifest and the reader of training volumes, with the same grid and normalisation. A training of
Pathray does not use it: order, replacement and exact resume are the run's (pathray.data).
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from oct.augment import normalise
from oct.cache import VolumeCache
from oct.dicom.resample import read_volume
from oct.indexing.manifest import Manifest, ManifestRow, read_manifest
from oct.volume import Grid, Sampled, VolumeHeader
from pathray.errors import UnreadableUnit, UserError
from pathray.store.storage import file_state

log = logging.getLogger(__name__)
CACHE_GB = 50.0
Sample = dict[str, Any]


class OCTDICOMDataset(Dataset[Sample]):
    """Volumes of a manifest on a grid.

    manifest_path: AI-READI's manifest.tsv, a path or URL. gcs_root: folder or URL that its paths are below; None: where
    the manifest is. file_list: paths of the manifest to use, in this order; None: all. transforms: called with each
    sample. use_cache: keep local copies of the files in DATA_CACHE_DIR.

    A sample is `{image: float32 [1, D, H, W], spacing: (dz, dy, dx) in mm, meta: {…}}`. The image is z-scored over its
    own voxels; around it is 0. A spacing is NaN on an axis that nothing gave a spacing for and that was fitted to the
    grid. A file that is no volume, or cannot be read, is replaced by the next one, so that batches stay full: `meta`
    then has `instead_of`, and `unreadable` counts the files by reason.
    """

    def __init__(
        self,
        manifest_path: str,
        gcs_root: str | None = None,
        file_list: Sequence[str] | None = None,
        transforms: Callable[[Sample], Sample] | None = None,
        use_cache: bool = False,
        *,
        grid: Grid | None = None,
    ) -> None:
        manifest = read_manifest(manifest_path, gcs_root or "")
        self.root, self.rows = manifest.root, rows_of(manifest, file_list)
        self.transforms, self.grid = transforms, grid or Grid()
        self.cache = VolumeCache.of(None, CACHE_GB) if use_cache else VolumeCache()
        self.unreadable: Counter[str] = Counter()
        self._failed: set[str] = set()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        """The sample at `index`, or the next one that can be read. IndexError beyond the end; UserError when no file of
        the manifest can be read."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        wanted = self.rows[index]
        for step in range(len(self)):
            row = self.rows[(index + step) % len(self)]
            if (sample := self._read(row)) is not None:
                sample["meta"] |= {"instead_of": wanted.path} if row is not wanted else {}
                return self.transforms(sample) if self.transforms is not None else sample
        message, found = "no volume of the manifest can be read", dict(self.unreadable)
        expected = "volumes; if they are missing, gcs_root is the folder that the manifest's paths begin in"
        raise UserError(message, file=self.root, found=found, expected=expected)

    def _read(self, row: ManifestRow) -> Sample | None:
        path = f"{self.root.rstrip('/')}/{row.path}"
        try:
            sampled, header = read_volume(path, self.grid, manifest_spacing=row.spacing_mm, read=self._read_bytes)
        except UnreadableUnit as e:
            if row.path not in self._failed:
                log.warning("left out: %s", e)
                self.unreadable[e.reason] += 1
                self._failed.add(row.path)
            return None
        return _sample(row, sampled, header)

    def _read_bytes(self, path: str) -> bytes:
        return self.cache.read(path, file_state(path) if self.cache.folder else "")


def rows_of(manifest: Manifest, file_list: Sequence[str] | None) -> list[ManifestRow]:
    """The rows of these paths, in their order; all rows if None. UserError for a path that the manifest does not
    have."""
    if file_list is None:
        return list(manifest.rows)
    by_path = {row.path: row for row in manifest.rows}
    names = [name.strip().lstrip("/").removeprefix("dataset/") for name in file_list]
    if lost := [name for name in names if name not in by_path]:
        message, found = "a file is not in the manifest", f"{lost[0]}" + f" and {len(lost) - 1} more" * (len(lost) > 1)
        raise UserError(message, file=manifest.path, key="file_list", found=found, expected="paths of its filepath")
    return [by_path[name] for name in names]


def collate_fn(samples: Sequence[Sample]) -> Sample:
    """A batch: image `[B, 1, D, H, W]`, spacing float32 `[B, 3]`, meta a list of B."""
    return {
        "image": torch.stack([sample["image"] for sample in samples]),
        "spacing": torch.tensor([sample["spacing"] for sample in samples]),
        "meta": [sample["meta"] for sample in samples],
    }


def _sample(row: ManifestRow, sampled: Sampled, header: VolumeHeader) -> Sample:
    image, inside = torch.from_numpy(sampled.image)[None], torch.from_numpy(sampled.inside)[None]
    meta: Mapping[str, Any] = {
        "path": row.path,
        "person": row.person,
        "device": row.device,
        "region": row.region,
        "laterality": header.laterality or row.laterality,
        "frames": header.frames,
        "spacing_mm": header.geometry.spacing_mm,
        "spacing_sources": header.geometry.sources,
        "inside": sampled.inside.tolist(),
    }
    normal: Tensor = normalise(image, inside)
    return {"image": normal, "spacing": sampled.spacing_mm, "meta": dict(meta)}
