"""Features of a frozen backbone for the images of a plan, computed once and stored in parts.

A folder is named after everything that its numbers depend on: weights, preprocessing, the images and their state. Other
runs and folds reuse the same features; an interrupted computation resumes with the missing parts. Not here: the
distributed computation (ray_jobs.regression.frozen_features), and models of the features (regression.baseline).
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
import torch

from pathray.data.plan import Plan
from pathray.device import Device
from pathray.errors import UnreadableUnit, UserError
from pathray.store.storage import Storage
from regression.baseline import Floats, colour_features
from regression.config import RunConfig
from regression.data import read_square
from regression.model import ExpressionNet, Preprocessing, build_net, preprocessing
from regression.plan import rows_of
from regression.recipe import to_inputs

VERSION = 1  # increment it when equal inputs give other numbers than before
PART = 256  # images per part


@dataclass(frozen=True)
class Features:
    """`seen` `[N, D]` by the backbone and `colours` `[N, 12]` of the images; rows of unreadable images are NaN."""

    seen: npt.NDArray[np.float32]
    colours: Floats


@dataclass(frozen=True)
class FeatureFolder:
    """The features of `paths`, in this order, in `folder` (path or URL)."""

    folder: str
    paths: tuple[str, ...]

    @property
    def parts(self) -> int:
        return -(-len(self.paths) // PART)

    def paths_of(self, part: int) -> tuple[str, ...]:
        return self.paths[part * PART : (part + 1) * PART]

    def missing(self) -> list[int]:
        """Parts that do not exist yet."""
        found = set(Storage.of(self.folder).list())
        return [part for part in range(self.parts) if _name(part) not in found]

    def write(self, part: int, features: Features) -> None:
        buffer = io.BytesIO()
        np.savez(buffer, seen=features.seen, colours=features.colours)
        Storage.of(self.folder).write_bytes(_name(part), buffer.getvalue())

    def load(self) -> Features:
        """The features of all parts. UserError naming a damaged part."""
        store = Storage.of(self.folder)
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda part: self._part(store, part), range(self.parts)))
        return Features(np.concatenate([f.seen for f in found]), np.concatenate([f.colours for f in found]))

    def _part(self, store: Storage, part: int) -> Features:
        try:
            with np.load(io.BytesIO(store.read_bytes(_name(part))), allow_pickle=False) as found:
                out = Features(found["seen"], found["colours"])
        except (ValueError, KeyError, OSError) as e:
            where = store.join(_name(part))
            raise UserError(f"damaged features: {e}", file=where, expected="remove it, and it is computed again") from e
        assert len(out.seen) == len(out.colours) == len(self.paths_of(part)), part
        return out


def feature_folder(root: str, config: RunConfig, paths: Sequence[str], states: Sequence[str]) -> FeatureFolder:
    """The folder below `root` for the features of a config's initial backbone; `states` are the states of the image
    files."""
    net = build_net(config)
    facts = {
        "version": VERSION,
        "backbone": backbone_digest(net),
        "preprocessing": asdict(preprocessing(config)),
        "images": hashlib.sha256(json.dumps([list(paths), list(states)]).encode()).hexdigest(),
    }
    name = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24]
    return FeatureFolder(Storage.of(root).join(name), tuple(paths))


def check_evaluated(folder: FeatureFolder, plan: Plan) -> None:
    """UserError naming the first unreadable val or test image: an evaluation leaves nothing out."""
    rows = np.concatenate([rows_of(plan, part) for part in ("val", "test")])
    lost = rows[np.isnan(folder.load().colours[rows]).any(axis=1)]
    if lost.size:
        found = f"{lost.size} such images"
        raise UserError("an image to be evaluated cannot be read", file=folder.paths[int(lost[0])], found=found)


def backbone_digest(net: ExpressionNet) -> str:
    """sha256 of the names, shapes and bits of a backbone's tensors."""
    digest = hashlib.sha256()
    for name, tensor in sorted(net.backbone.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def features_of(
    net: ExpressionNet, given: Preprocessing, paths: Sequence[str], device: Device, *, batch_size: int, threads: int
) -> Features:
    """Features of images; `net` must be on `device` and in evaluation mode. Rows of unreadable images are NaN."""
    seen, colours = [], []
    with ThreadPoolExecutor(threads) as pool, torch.no_grad():
        for first in range(0, len(paths), batch_size):
            images = list(pool.map(lambda path: _read(path, given.size), paths[first : first + batch_size]))
            pixels = np.stack([np.zeros((given.size,) * 2 + (3,), np.uint8) if i is None else i for i in images])
            inputs = to_inputs(torch.from_numpy(pixels).to(device.torch_device), given)
            batch = net.features(inputs).float().cpu().numpy()
            colour = colour_features(pixels)
            lost = np.array([i is None for i in images])
            batch[lost], colour[lost] = np.nan, np.nan
            seen.append(batch)
            colours.append(colour)
    return Features(np.concatenate(seen), np.concatenate(colours))


def uses_cache(config: RunConfig) -> bool:
    """Whether a run trains on stored features: its backbone is frozen and images are not augmented."""
    return config.model.frozen and not config.augment.geometry and config.augment.stain == 0


def _read(path: str, size: int) -> npt.NDArray[np.uint8] | None:
    try:
        return read_square(path, size)
    except UnreadableUnit:
        return None


def _name(part: int) -> str:
    return f"part-{part:06d}.npz"
