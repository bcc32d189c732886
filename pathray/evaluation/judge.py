"""One evaluation: a snapshot's encoder through every plugin and dataset that is due. No Ray.

A `Judge` stays in an evaluator's process from one snapshot to the next and keeps what does not change: the datasets.
Not here: when something is due (pathray.evaluation.backlog) and where results go (pathray.evaluation.results).
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from pathray.errors import UserError
from pathray.evaluation.backlog import Due
from pathray.evaluation.datasets import Dataset, Unfit, open_dataset
from pathray.evaluation.plugins import evaluate, features_of
from pathray.evaluation.settings import DatasetConfig, PluginConfig
from pathray.reports.units import describe
from pathray.run.layout import EVALUATION
from pathray.store.storage import Storage, StorageError

if TYPE_CHECKING:
    from pathray.device import Device
    from pathray.features.images import ImageSettings

log = logging.getLogger(__name__)

EMBEDDINGS = f"{EVALUATION}/embeddings"
Key = tuple[Any, ...]


@dataclass
class Judged:
    """Metrics by full name, and notes on what could not be judged, or not by the dataset's own plan. `failed`: by
    evaluator, dataset and metric, what went wrong that is not about the dataset."""

    metrics: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


class Volumes(Protocol):
    """Opens and encodes datasets of volumes, which the science that has them brings."""

    def open(self, name: str, config: DatasetConfig) -> Dataset: ...

    def features(
        self, dataset: Dataset, artifact: str, device: Device, plugin: PluginConfig
    ) -> npt.NDArray[np.float32]: ...


class Judge:
    """Evaluates encoders with `plugins`; `run_dir` gets the embeddings for the report. `volumes`: reads the datasets
    that are indexes of volumes, if there are any."""

    def __init__(self, plugins: Sequence[PluginConfig], run_dir: str, volumes: Volumes | None = None) -> None:
        self.plugins, self.run_dir, self.volumes = list(plugins), run_dir, volumes
        self._datasets: dict[str, Dataset] = {}

    def check(self) -> list[str]:
        """UserError for a dataset that cannot be opened, naming file, row and column; what is to be said of the
        others."""
        notes = []
        for i, plugin in enumerate(self.plugins):
            for name, config in plugin.datasets.items():
                if not config.manifest_csv and not config.volumes:
                    key = f"tuning.plugins[{i}].datasets.{name}.manifest_csv"
                    raise UserError(
                        "`manifest_csv` is required", key=key, found=None, expected="a manifest of labelled images"
                    )
                notes += [f"{name}: {note}" for note in self._dataset(name, config).notes]
        return list(dict.fromkeys(notes))

    def images(self) -> list[str]:
        """The images of all datasets that have been opened, each once."""
        return list(dict.fromkeys(image for dataset in self._datasets.values() for image in dataset.images))

    def judge(
        self,
        encoder: str,
        due: Due,
        device: Device,
        images_seen: int,
        neighbours: Mapping[str, int] | None = None,
    ) -> Judged:
        """The metrics `due` of the encoder artifact in a folder. What one dataset or metric fails by does not take the
        others' results; where it leaves nothing at all, it is raised (UserError for images that cannot be encoded).

        neighbours: by dataset, the k that ``auto`` chose at the run's first evaluation. Indices of another k do not
        compare, so it holds for all later ones.
        """
        judged, errors, drawn = Judged(), list[Exception](), set[Key]()
        features = _Features(encoder, device, self.volumes)
        for plugin in self.plugins:
            for name, config in plugin.datasets.items():
                if not due.get(plugin.name):
                    continue
                where = f"{plugin.name}/{name}"
                try:
                    dataset = _with_neighbours(self._dataset(name, config), neighbours or {})
                    key, x = features.of(dataset, plugin)
                    if plugin.embedding != "none" and key not in drawn:
                        drawn.add(key)
                        self._embed(plugin, dataset, x, images_seen, judged)
                    found = evaluate(plugin.name, dataset, x, due=due[plugin.name])
                except StorageError:
                    raise  # the whole evaluation is tried again
                except Unfit as e:
                    judged.notes.append(f"{where}: {e}")
                except UserError as e:
                    errors.append(e)
                    judged.failed[where] = describe(e)
                else:
                    errors += found.failed.values()
                    judged.failed |= {f"{where}/{metric}": describe(e) for metric, e in found.failed.items()}
                    judged.metrics |= found.metrics
                    judged.notes += [f"{where}: {note}" for note in found.notes]
        if errors and not judged.metrics:
            raise errors[0]
        judged.notes = list(dict.fromkeys(judged.notes))
        return judged

    def _dataset(self, name: str, config: DatasetConfig) -> Dataset:
        key = f"{name} {config}"
        if key not in self._datasets and config.volumes:
            assert self.volumes is not None, "a judge of volumes needs their reader"
            self._datasets[key] = self.volumes.open(name, config)
        elif key not in self._datasets:
            self._datasets[key] = open_dataset(
                name,
                str(config.manifest_csv),
                reduced=config.reduced_csv,
                neighbours=config.neighbours,
                root=config.root,
            )
        return self._datasets[key]

    def _embed(
        self, plugin: PluginConfig, dataset: Dataset, features: npt.NDArray[Any], images_seen: int, judged: Judged
    ) -> None:
        from pathray.evaluation.projection import embed, save_embedding

        try:
            picture = embed(features, plugin.embedding)
        except Exception as e:  # the picture must not take the figures along
            if not isinstance(e, UserError):
                log.error("the embedding of %s failed:\n%s", dataset.name, traceback.format_exc())
            judged.notes.append(f"{dataset.name}: no embedding: {describe(e)}")
            return
        save_embedding(Storage.of(self.run_dir).join(EMBEDDINGS), dataset, picture, images_seen)


class _Features:
    """Features of datasets by one encoder, each taken once for all plugins that look at the same images; what one
    fails by is met once, too."""

    def __init__(self, encoder: str, device: Device, volumes: Volumes | None) -> None:
        self._encoder, self._device, self._volumes = encoder, device, volumes
        self._known: dict[Key, npt.NDArray[np.float32] | UserError] = {}

    def of(self, dataset: Dataset, plugin: PluginConfig) -> tuple[Key, npt.NDArray[np.float32]]:
        """What tells these features from others, and the features `[N, D]` of `dataset.images`."""
        key = (dataset.images, plugin.features, plugin.resize)
        if key not in self._known:
            try:
                self._known[key] = self._take(dataset, plugin)
            except UserError as e:
                self._known[key] = e
        found = self._known[key]
        if isinstance(found, UserError):
            raise found
        return key, found

    def _take(self, dataset: Dataset, plugin: PluginConfig) -> npt.NDArray[np.float32]:
        if dataset.of_volumes:
            assert self._volumes is not None
            return self._volumes.features(dataset, self._encoder, self._device, plugin)
        return features_of(dataset, self._encoder, self._device, image_settings(plugin))


def _with_neighbours(dataset: Dataset, chosen: Mapping[str, int]) -> Dataset:
    if dataset.neighbours == "auto" and dataset.name in chosen:
        return replace(dataset, neighbours=chosen[dataset.name])
    return dataset


def image_settings(plugin: PluginConfig) -> ImageSettings:
    """The plugin's extraction settings, under the names that extraction has for them."""
    from pathray.features.images import ImageSettings

    return ImageSettings(
        resize=plugin.resize,
        pooling=plugin.features,
        batch_size=plugin.feature_batch_size,
        read_threads=plugin.feature_num_workers,
        read_ahead=plugin.feature_prefetch_factor,
    )


def cadences(plugins: Sequence[PluginConfig]) -> Mapping[str, Mapping[str, int]]:
    """By plugin and metric, at every how many evaluations it is due."""
    return {plugin.name: plugin.cadences for plugin in plugins}
