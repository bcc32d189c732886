"""Aggregators, encoders and settings against each other on the same splits and seeds, through Ray Tune, as one command.

    python -m ray_jobs.benchmark_models models='[abmil,transmil,static]' output=outputs/benchmark \\
        args='[data=gej,encoder=uni2h,splits=kfold5]'
    python -m ray_jobs.benchmark_models encoders='[univ1,uni2h]' models='[abmil]' output=… args='[data=gej]'

A trial is a `train_mil` in `output`/trials with all its seeds; the same command resumes what is unfinished. At the end
`comparison.html` has every trial's scores with intervals over patients, and all pairs compared on the same resamples,
with p-values corrected for their number (ray_jobs.compare_experiments). Nothing is chosen: trials are in the order of
their loss on validation slides, and their scores are those of test slides.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mil.sections import CONFIGS_DIR
from pathray.config.checks import check_at_least
from pathray.config.load import MISSING, Loaded, placement
from pathray.errors import UserError
from ray_jobs.shell.cli import Outputs, job
from ray_jobs.shell.runtime import RuntimeConfig

if TYPE_CHECKING:
    from ray_jobs.tune.config import SweepConfig

log = logging.getLogger(__name__)
RESERVED = ("model", "encoder", "seeds", "output")


@dataclass
class BenchmarkModelsConfig:
    """What is varied, and what every training has in common."""

    output: str = MISSING
    args: list[str] = field(default_factory=list)  # of train_mil: [data=gej, splits=kfold5, KEY=VALUE, …]
    models: list[str] = field(default_factory=list)  # names as in model=NAME; none: every aggregator
    encoders: list[str] = field(default_factory=list)  # names as in encoder=NAME, for which data.store has a store each
    space: dict[str, Any] = field(default_factory=dict)  # further keys: {training.lr: {grid: [1e-4, 3e-4]}}
    seeds: int = 5  # trainings of each
    resamples: int = 2000  # of patients, in the comparison
    max_concurrent: int = placement(1)  # trials at the same time
    runtime: RuntimeConfig = placement(default_factory=RuntimeConfig)

    def __post_init__(self) -> None:
        check_at_least(self, "", 1, "seeds", "max_concurrent", "resamples")
        for key in self.space:
            if key in RESERVED:
                raise UserError("this key has a place of its own", key=f"space.{key}", expected=f"{key}s=[…]")


def main(loaded: Loaded[BenchmarkModelsConfig]) -> Outputs | None:
    from ray_jobs import sweep
    from ray_jobs.mil.benchmark import compare_trials

    config = loaded.config
    search = sweep_of(config)
    done = sweep.main(Loaded(search, loaded.yaml, loaded.dry_run))
    if loaded.dry_run or done is None or done.exit_code:
        return done
    return Outputs({**done.paths, **compare_trials(str(search.output), config.resamples)})


def sweep_of(config: BenchmarkModelsConfig) -> SweepConfig:
    """The grid as a sweep; one that its output has already is restored. UserError for an unknown name."""
    from mil.aggregators import aggregator_names
    from pathray.store.storage import Storage
    from ray_jobs.mil.benchmark import OBJECTIVE
    from ray_jobs.tune.config import CONFIG, SweepConfig

    space = {"model": {"grid": list(config.models or aggregator_names())}}
    if config.encoders:
        space["encoder"] = {"grid": list(config.encoders)}
    store = Storage.of(config.output)
    return SweepConfig(
        job="train_mil", args=[*config.args, f"seeds={config.seeds}"], space={**space, **config.space},
        objective=OBJECTIVE, search="grid", max_concurrent=config.max_concurrent,
        output=store.url, restore=store.url if store.exists(CONFIG) else None, runtime=config.runtime,
    )  # fmt: skip


if __name__ == "__main__":
    job(main, BenchmarkModelsConfig, CONFIGS_DIR)
