"""The `tuning` section of a run config: evaluators that judge snapshots while training continues. Of any science.

Only the schema: what is evaluated and when it is due. Not here: the metrics, which snapshot is next (pathray.evaluation
.backlog) and who runs them. Tuning cannot alter the weights, except by ending a run early, so all of it is placement.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

from pathray.config.checks import check_at_least, check_one_of, check_positive
from pathray.errors import UserError
from pathray.evaluation.early_stopping import EarlyStopping, metric_key
from pathray.evaluation.plugins import EVALUATORS, load_evaluator

OF_VOLUMES = ("labels", "label", "max_volumes")
HEAVY = ("ri", "apd", "clustering", "linear", "knn")  # the metrics that have a cadence of their own


@dataclass
class ExecutionConfig:
    mode: str = "async"  # sync: the training waits for each evaluation
    device: str = "auto"  # auto | cpu | cuda:<id>
    gpus: float | None = None  # share of a GPU per evaluation; None: what `device` says
    cpus: float = 1.0  # of one evaluation, and its threads
    max_pending_jobs: int = 2
    coalesce_policy: str = "newest"  # under backlog the oldest waiting evaluations are dropped first
    poll_every_steps: int | str = "auto"  # max(1, round(tune_every / (global_batch * 20)))
    fail_on_backlog: bool = False
    keep_last_n_snapshots: int = 2
    max_retries: int = 1  # of an evaluation that failed, before it is recorded as failed

    def __post_init__(self) -> None:
        section = "tuning.execution"
        check_one_of(self, section, mode=("async", "sync"), coalesce_policy=("newest",))
        check_positive(self, section, "max_pending_jobs", "keep_last_n_snapshots", "cpus")
        check_at_least(self, section, 0, "max_retries")
        if self.gpus is not None:
            check_at_least(self, section, 0, "gpus")
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            expected = "auto | cpu | cuda:<id>"
            raise UserError("no such device", key=f"{section}.device", found=self.device, expected=expected)
        if self.poll_every_steps != "auto" and not str(self.poll_every_steps).isdecimal():
            key, expected = f"{section}.poll_every_steps", "auto, or a whole number"
            raise UserError("not a number of steps", key=key, found=self.poll_every_steps, expected=expected)


@dataclass
class DatasetConfig:
    manifest_csv: str | None = None
    reduced_csv: str | None = None  # the benchmark's reduced table; None: the one beside the manifest, if any
    root: str = ""  # folder that relative image paths are below; "": the manifest's own
    neighbours: int | str | None = None  # k of the robustness index: the dataset's own, a number, or auto
    volumes: str | None = None  # instead of manifest_csv, for encoders of OCT volumes: what ray_jobs.index_oct wrote
    labels: str | None = None  # of volumes: CSV, TSV or parquet with path or person_id, and the label
    label: str | None = None  # of volumes, the class: a column of `labels` (label), or without it of the index (device)
    center: str = "device"  # of volumes: a column of the index
    max_volumes: int | None = None  # of volumes: at most, evenly spaced; None: all

    def __post_init__(self) -> None:
        section = "tuning.plugins[*].datasets.*"
        check_positive(self, section, "max_volumes")
        if self.volumes and (self.manifest_csv or self.reduced_csv):
            raise UserError("set either manifest_csv or volumes", key=f"{section}.volumes", found="both")
        if not self.volumes and (used := [key for key in OF_VOLUMES if getattr(self, key)]):
            expected = f"{section}.volumes, an index of volumes"
            raise UserError("only volumes have this", key=f"{section}.{used[0]}", expected=expected)


@dataclass
class EveryConfig:
    """A metric that runs at every n-th evaluation; 0 switches it off."""

    every_n_evals: int = 1

    def __post_init__(self) -> None:
        check_at_least(self, "tuning.plugins[*].metric", 0, "every_n_evals")


@dataclass
class PluginConfig:
    """One evaluator and what it judges on. The metrics that it does not have keep their cadence unused."""

    name: str = "pathorob"
    datasets: dict[str, DatasetConfig] = field(default_factory=dict)
    features: str = "auto"  # pooling: an imported encoder's own, otherwise mean | mean | cls | cls+mean
    resize: bool = False  # images to the encoder's own size; otherwise as they are
    embedding: str = "pca"  # | umap | none: the picture of the features in two dimensions
    feature_batch_size: int = 64
    feature_num_workers: int = 2  # threads that read images
    feature_persistent_workers: bool = True  # one evaluator process serves all snapshots
    feature_prefetch_factor: int = 2  # batches read ahead
    ri: EveryConfig = field(default_factory=EveryConfig)
    apd: EveryConfig = field(default_factory=EveryConfig)
    clustering: EveryConfig = field(default_factory=EveryConfig)
    linear: EveryConfig = field(default_factory=EveryConfig)
    knn: EveryConfig = field(default_factory=EveryConfig)

    def __post_init__(self) -> None:
        section = "tuning.plugins[*]"
        if self.name not in EVALUATORS:
            load_evaluator(self.name)  # raises, with the nearest right name
        check_one_of(self, section, features=("auto", "mean", "cls", "cls+mean"), embedding=("pca", "umap", "none"))
        check_at_least(self, section, 1, "feature_num_workers")
        check_positive(self, section, "feature_batch_size", "feature_prefetch_factor")

    @property
    def cadences(self) -> dict[str, int]:
        """Of the metrics that the evaluator has, those in use: at every how many evaluations."""
        own = {metric: getattr(self, metric).every_n_evals for metric in load_evaluator(self.name).metrics}
        return {metric: every for metric, every in own.items() if every > 0}


@dataclass
class SelectionConfig:
    plugin: str = "pathorob"
    dataset: str = "camelyon"
    metric: str = "ri"
    mode: str = "max"  # max for ri, apd (0 is best, negative is worse) and clustering_score alike

    def __post_init__(self) -> None:
        check_one_of(self, "tuning.early_stopping.selection", mode=("min", "max"))

    @property
    def key(self) -> str:
        """The name that the metric is logged under."""
        return metric_key(self.plugin, self.dataset, self.metric)


@dataclass
class EarlyStoppingConfig:
    enable: bool = False
    selection: SelectionConfig = field(default_factory=SelectionConfig)
    patience_evals: int = 5
    min_evals: int = 3
    stop_training: bool = True
    save_best_checkpoint: bool = True

    def __post_init__(self) -> None:
        check_positive(self, "tuning.early_stopping", "patience_evals", "min_evals")

    def rule(self) -> EarlyStopping:
        """UserError for a direction that would pick the worst."""
        return EarlyStopping(self.selection.key, self.selection.mode, self.patience_evals, self.min_evals)


@dataclass
class TuningConfig:
    enable: bool = False
    tune_every: int = 1_000_000  # images
    run_baseline_at_zero: bool = True
    execution: ExecutionConfig = field(default_factory=ExecutionConfig)
    plugins: list[PluginConfig] = field(default_factory=list)
    early_stopping: EarlyStoppingConfig = field(default_factory=EarlyStoppingConfig)

    def __post_init__(self) -> None:
        check_positive(self, "tuning", "tune_every")
        if self.enable:
            self.check()

    def map_paths(self, absolute: Callable[[str | None], str | None]) -> TuningConfig:
        """With the paths of all datasets made absolute: an evaluator runs in another folder than the command."""
        plugins = []
        for plugin in self.plugins:
            datasets = {
                name: replace(
                    dataset,
                    manifest_csv=absolute(dataset.manifest_csv),
                    reduced_csv=absolute(dataset.reduced_csv),
                    root=absolute(dataset.root or None) or "",
                    volumes=absolute(dataset.volumes),
                    labels=absolute(dataset.labels),
                )
                for name, dataset in plugin.datasets.items()
            }
            plugins.append(replace(plugin, datasets=datasets))
        return replace(self, plugins=plugins)

    def check(self) -> None:
        """UserError for what would leave nothing to evaluate, or a selection that nothing evaluates."""
        if not self.plugins:
            expected = "at least one plugin: a config with them, demo_robustness or pathorob_camelyon to begin with"
            raise UserError("nothing to evaluate", key="tuning.plugins", found=[], expected=expected)
        for i, plugin in enumerate(self.plugins):
            if not plugin.datasets:
                key, expected = f"tuning.plugins[{i}].datasets", "{NAME: {manifest_csv: …}}"
                raise UserError("an evaluator without a dataset", key=key, found={}, expected=expected)
            if not plugin.cadences:
                expected = f"every_n_evals above 0 of one of {list(load_evaluator(plugin.name).metrics)}"
                raise UserError("every metric is switched off", key=f"tuning.plugins[{i}]", found=0, expected=expected)
        names = [plugin.name for plugin in self.plugins]
        if len(set(names)) < len(names):
            raise UserError("an evaluator is listed twice", key="tuning.plugins", found=names, expected="each once")
        if self.early_stopping.enable:
            self._check_selection()

    def _check_selection(self) -> None:
        selection, key = self.early_stopping.selection, "tuning.early_stopping.selection"
        found: object
        expected: object
        self.early_stopping.rule()
        plugin = next((plugin for plugin in self.plugins if plugin.name == selection.plugin), None)
        if plugin is None:
            found, expected = selection.plugin, [plugin.name for plugin in self.plugins]
            raise UserError("no such plugin is evaluated", key=f"{key}.plugin", found=found, expected=expected)
        if selection.dataset not in plugin.datasets:
            found, expected = selection.dataset, list(plugin.datasets)
            raise UserError("no such dataset is evaluated", key=f"{key}.dataset", found=found, expected=expected)
        heavy = next((metric for metric in HEAVY if selection.metric.split("_")[0] == metric), None)
        if heavy is not None and heavy not in plugin.cadences:
            expected = f"one of {list(plugin.cadences)}, or every_n_evals above 0"
            raise UserError("that metric is switched off", key=f"{key}.metric", found=heavy, expected=expected)
        values, name = load_evaluator(plugin.name).values, selection.key.rpartition("/")[2]
        if not any(fnmatchcase(name, value) for value in values):
            message = f"{plugin.name} has no such metric"
            raise UserError(message, key=f"{key}.metric", found=selection.metric, expected=list(values))


def poll_every_steps(config: TuningConfig, global_batch: int) -> int:
    """Steps between two looks at finished evaluations."""
    if config.execution.poll_every_steps == "auto":
        return max(1, round(config.tune_every / (global_batch * 20)))
    return max(1, int(config.execution.poll_every_steps))
