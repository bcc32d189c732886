"""What the evaluators of the library judge an encoder of OCT volumes on: volumes of an index, and their features.

A class is a label (of a table, or of the index: the device itself, for a probe that tells scanners apart), a centre is
the device or another column of the index, and a slide is a person: no person is on both sides of a probe, and none is
a neighbour of his own volumes. Not here: the metrics (pathray.evaluation), when one is due.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from oct.cache import VolumeCache
from oct.indexing.index_file import read_index
from oct.indexing.manifest import Spacing
from oct.plan import manifest_spacing
from pathray.errors import UnreachableUnit, UnreadableUnit, UserError
from pathray.evaluation.datasets import METRICS, Dataset, Patches
from pathray.evaluation.settings import DatasetConfig, PluginConfig
from pathray.store.storage import StorageError
from pathray.urls import public

if TYPE_CHECKING:
    from oct.encoding.encoder import VolumeEncoder
    from pathray.device import Device

T = TypeVar("T")
Row = dict[str, Any]
COLUMNS = ("device", "manufacturer", "model", "region", "laterality", "person")
DEVICE, LABEL = "device", "label"
CACHE_GB = 50.0
TIMEOUT_S = 600.0


class JudgedVolumes:
    """Opens datasets of volumes, and encodes them; remembers what reading their files needs."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[Spacing, str]] = {}  # URL → spacing of the manifest, state of the file

    def open(self, name: str, config: DatasetConfig) -> Dataset:
        """The accepted volumes of `config.volumes` that have a label, at most `max_volumes` of them. MissingFile;
        UserError naming file and column."""
        index_path = str(config.volumes)
        index, notes = read_index(index_path), list[str]()
        rows = index.accepted.to_pylist()
        labels = _labels(rows, config, index_path, notes)
        centers = _cells(rows, config.center, index_path, "center")
        kept = [i for i, (label, center) in enumerate(zip(labels, centers, strict=True)) if label and center]
        if not kept:
            expected = f"values of {config.label or LABEL} and {config.center}"
            raise UserError("no volume has a label", file=public(index_path), key="label", expected=expected)
        if len(kept) < len(rows):
            notes.append(f"{len(rows) - len(kept)} of {len(rows)} volumes have no label or no {config.center}")
        kept = evenly(kept, config.max_volumes)
        root = (config.root or index.root).rstrip("/")
        urls = [f"{root}/{rows[i]['path']}" for i in kept]
        self._known |= {
            url: (manifest_spacing(rows[i]), str(rows[i]["state"])) for url, i in zip(urls, kept, strict=True)
        }
        volumes = Patches(
            index_path,
            tuple(urls),
            np.array([labels[i] for i in kept]),
            np.array([centers[i] for i in kept]),
            np.array([str(rows[i]["person"]) for i in kept]),
            np.zeros(len(kept), bool),
            np.array([""] * len(kept)),
        )
        places = np.arange(len(kept))
        neighbours = "auto" if config.neighbours is None else config.neighbours
        own, at = dict.fromkeys(METRICS, volumes), dict.fromkeys(METRICS, places)
        return Dataset(name, volumes.images, own, at, neighbours, None, tuple(notes), of_volumes=True)

    def features(
        self, dataset: Dataset, artifact: str, device: Device, plugin: PluginConfig
    ) -> npt.NDArray[np.float32]:
        """Pooled features `[N, D]` of the dataset's volumes. UserError naming the first that cannot be read: metrics on
        a part of a dataset would not compare. A passing StorageError if their storage cannot be reached now."""
        from oct.encoding.encoder import VolumeSpec, encoder_of
        from pathray.features.inference import encoding_error, read_ahead

        spec = VolumeSpec.of("encoder", artifact)
        encoder = encoder_of(spec, device, pooling=spec.pooling(plugin.features), precision="fp32")
        cache, found = VolumeCache.of(None, CACHE_GB), list[npt.NDArray[np.float32]]()
        volumes = read_ahead(
            lambda url: self._read(encoder, cache, url, dataset.name),
            dataset.images,
            threads=plugin.feature_num_workers,
            timeout_s=TIMEOUT_S,
            per_thread=1,
            name=public,
        )
        for volume in volumes:
            try:
                found.append(encoder.pool(encoder.all_tokens(volume))[0].cpu().numpy())
            except Exception as e:
                raise encoding_error(e) from e
        return np.stack(found)

    def _read(self, encoder: VolumeEncoder, cache: VolumeCache, url: str, name: str) -> Any:
        spacing, state = self._known[url]
        try:
            return encoder.given.read(url, spacing, lambda path: cache.read(path, state))
        except UnreachableUnit as e:
            message = "the storage of the volumes cannot be reached"
            raise StorageError.temporary(message, file=e.path, found=e.detail) from e
        except UnreadableUnit as e:
            why = f"{e.reason} {e.detail}".strip()
            raise UserError("a volume cannot be encoded", file=public(url), key=name, found=why) from e


def evenly(rows: list[T], most: int | None) -> list[T]:
    """At most `most` of the rows, evenly spaced."""
    if most is None or len(rows) <= most:
        return rows
    return [rows[i * len(rows) // most] for i in range(most)]


def _labels(rows: list[Row], config: DatasetConfig, index: str, notes: list[str]) -> list[str]:
    """The class of each row, "" where it has none."""
    if not config.labels:
        return _cells(rows, config.label or DEVICE, index, "label")
    from oct.downstream.cohort import read_labels

    given, per_person = read_labels(config.labels, config.label or LABEL)
    names = [str(row["person" if per_person else "path"]) for row in rows]
    if unused := len(set(given) - set(names)):
        notes.append(f"{unused} labels are of no volume that is judged")
    return [given.get(name, "") for name in names]


def _cells(rows: list[Row], column: str, index: str, key: str) -> list[str]:
    """A column of the index; of regions what is before the comma: behind it is how a device calls its scan."""
    if column not in COLUMNS:
        message = "the index of volumes has no such column"
        raise UserError(message, file=public(index), key=key, found=column, expected=COLUMNS)
    cells = [str(row[column] or "") for row in rows]
    return [cell.partition(",")[0].strip() for cell in cells] if column == "region" else cells
