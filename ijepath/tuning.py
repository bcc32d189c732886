"""The `tuning` section of the run config: evaluators that judge snapshots while the training goes on.

Only the schema: what is evaluated and when it is due. Not here: the metrics (core.evaluation) and who runs them.
Tuning cannot alter the weights, except by ending a run early, so all of it is placement.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from core.errors import UserError
from ijepath.checks import at_least, one_of, positive


@dataclass
class ExecutionConfig:
    mode: str = "async"  # sync: the training waits for each evaluation
    device: str = "auto"  # auto | cpu | cuda:<id>
    max_pending_jobs: int = 2
    coalesce_policy: str = "newest"  # under backlog the oldest waiting evaluations are dropped first
    poll_every_steps: int | str = "auto"  # max(1, round(tune_every / (global_batch * 20)))
    fail_on_backlog: bool = False
    keep_last_n_snapshots: int = 2

    def __post_init__(self) -> None:
        one_of(self, "tuning.execution", mode=("async", "sync"), coalesce_policy=("newest",))
        positive(self, "tuning.execution", "max_pending_jobs", "keep_last_n_snapshots")
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            raise UserError(
                "no such device", key="tuning.execution.device", found=self.device, expected="auto | cpu | cuda:<id>"
            )
        if self.poll_every_steps != "auto" and not str(self.poll_every_steps).isdecimal():
            key = "tuning.execution.poll_every_steps"
            raise UserError(
                "not a number of steps", key=key, found=self.poll_every_steps, expected="auto, or a whole number"
            )


@dataclass
class DatasetConfig:
    manifest_csv: str | None = None
    neighbours: int | str | None = None  # k of the robustness index: the dataset's own, a number, or auto


@dataclass
class EveryConfig:
    """A metric that runs at every n-th evaluation; 0 switches it off."""

    every_n_evals: int = 1

    def __post_init__(self) -> None:
        at_least(self, "tuning.plugins[*].metric", 0, "every_n_evals")


@dataclass
class PluginConfig:
    name: str = "pathorob"
    datasets: dict[str, DatasetConfig] = field(default_factory=dict)
    features: str = "mean"
    feature_batch_size: int = 64
    feature_num_workers: int = 2
    feature_persistent_workers: bool = True
    feature_prefetch_factor: int = 2
    ri: EveryConfig = field(default_factory=EveryConfig)
    apd: EveryConfig = field(default_factory=EveryConfig)
    clustering: EveryConfig = field(default_factory=EveryConfig)

    def __post_init__(self) -> None:
        one_of(self, "tuning.plugins[*]", features=("mean", "cls", "cls+mean"))
        at_least(self, "tuning.plugins[*]", 0, "feature_num_workers")
        positive(self, "tuning.plugins[*]", "feature_batch_size", "feature_prefetch_factor")


@dataclass
class SelectionConfig:
    plugin: str = "pathorob"
    dataset: str = "camelyon"
    metric: str = "ri"
    mode: str = "max"  # max for ri, apd (0 is best, negative is worse) and clustering_score alike

    def __post_init__(self) -> None:
        one_of(self, "tuning.early_stopping.selection", mode=("min", "max"))


@dataclass
class EarlyStoppingConfig:
    enable: bool = False
    selection: SelectionConfig = field(default_factory=SelectionConfig)
    patience_evals: int = 5
    min_evals: int = 3
    stop_training: bool = True
    save_best_checkpoint: bool = True

    def __post_init__(self) -> None:
        positive(self, "tuning.early_stopping", "patience_evals", "min_evals")


@dataclass
class TuningConfig:
    enable: bool = False
    tune_every: int = 1_000_000  # images
    run_baseline_at_zero: bool = True
    execution: ExecutionConfig = field(default_factory=ExecutionConfig)
    plugins: list[PluginConfig] = field(default_factory=list)
    early_stopping: EarlyStoppingConfig = field(default_factory=EarlyStoppingConfig)

    def __post_init__(self) -> None:
        positive(self, "tuning", "tune_every")
        if self.enable and not self.plugins:
            raise UserError("nothing to evaluate", key="tuning.plugins", found=[], expected="at least one plugin")


def poll_every_steps(config: TuningConfig, global_batch: int) -> int:
    """Steps between two looks at finished evaluations."""
    if config.execution.poll_every_steps == "auto":
        return max(1, round(config.tune_every / (global_batch * 20)))
    return max(1, int(config.execution.poll_every_steps))
