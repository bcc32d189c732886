"""A cross-validation of a regression: a run per fold, several at a time on one Ray, and what they say together.

    python -m ray_jobs.make_splits table=metadata.csv output=splits/loso kind=leave_one_group_out
    python -m ray_jobs.train_folds splits=splits/loso data.table=metadata.csv output=outputs/loso parallel=2

`output/fold_0` … are runs like any other. The same command resumes those that are not finished; interrupted, all of
them checkpoint. A fold that fails does not end the others. What folds share, the plan's images and the features of
frozen backbones, is computed once.
"""

from __future__ import annotations

import copy
import logging
import posixpath
import sys
import tempfile
from dataclasses import dataclass, field, replace

from pathray.config.checks import check_at_least
from pathray.config.load import MISSING, Loaded, placement
from pathray.errors import UserError
from ray_jobs.regression.checks import is_finished, tell_rehearsal
from ray_jobs.regression.runs import Run, plan_of, run_of
from ray_jobs.shell.cli import Outputs, job
from ray_jobs.shell.runtime import ray_session
from ray_jobs.train.folds import Fold, check_apart, find_splits, train_all
from ray_jobs.train.training_jobs import check_output
from ray_jobs.train_regression import TrainRegressionConfig, check_probes, make_paths_absolute, prepare_run, work_on
from ray_jobs.tune.mlflow import Parent
from regression.config import CONFIGS_DIR, DataConfig

log = logging.getLogger(__name__)


@dataclass
class TrainFoldsConfig(TrainRegressionConfig):
    """A run config for every fold; `data.split` and `logging.run_name` are the folds' own."""

    data: DataConfig = field(default_factory=lambda: DataConfig(split=""))
    splits: str = placement(MISSING)  # folder of fold_0.csv, fold_1.csv …, which make_splits writes
    parallel: int = placement(1)  # folds at a time
    title: str | None = placement(None)  # of the table and the figures; null: the folder's name

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, "", 1, "parallel")
        if self.parallel > 1 and self.scaling.workers == 0:
            expected = "parallel=1, or scaling.workers >= 1"
            raise UserError("several folds at a time need Ray", key="parallel", found=self.parallel, expected=expected)
        for key, value in (("data.split", self.data.split), ("logging.run_name", self.logging.run_name)):
            if value:
                raise UserError("each fold has its own", key=key, found=value, expected="splits=FOLDER alone")


def main(loaded: Loaded[TrainFoldsConfig]) -> Outputs | None:
    from pathray.store.storage import Storage
    from regression.reports.cross_validation import list_unfinished, write_summary

    config = loaded.config
    folds = folds_of(config)
    check_probes(folds[0].config)
    if loaded.dry_run:
        with tempfile.TemporaryDirectory(prefix="pathray-") as scratch:
            return tell_rehearsal(prepare_folds(folds, scratch))
    runs = prepare_folds(folds)
    root = Storage.of(str(config.output))
    left = [fold for fold, run in zip(folds, runs, strict=True) if not is_finished(run)]
    log.info("%d folds, %d of them finished", len(folds), len(folds) - len(left))
    names = [fold.name for fold in folds]
    parent = Parent(root, config.logging)
    metrics: dict[str, float] = {}
    try:
        if left:
            at_a_time, scaling = min(config.parallel, len(left)), config.scaling
            cpus = at_a_time * (scaling.ranks * scaling.cpus_per_worker + 0.5)
            with ray_session(config.runtime, cpus=cpus, autoscaling=scaling.autoscaling, needed=bool(scaling.workers)):
                train_all(root, [fold.below(parent) for fold in left], at_a_time, train_one)
        if waiting := list_unfinished(root, names):
            log.info("interrupted; the same command resumes %s", ", ".join(waiting))
            return Outputs({"runs": root.url})
        text, metrics = write_summary(root, names, config.title or posixpath.basename(root.url.rstrip("/")))
    finally:
        parent.end(metrics, "FINISHED" if metrics else "FAILED" if sys.exc_info()[0] else "KILLED")
    print(text)
    return Outputs({"table": root.join("folds.md"), "per_gene": root.join("per_gene.csv"), "runs": root.url})


def prepare_folds(folds: list[Fold], scratch: str = "") -> list[Run]:
    """The folds' runs, after every check of every fold. In a dry run their plans are in `scratch`."""
    runs = [run_of_fold(fold, scratch) for fold in folds]
    check_apart(folds, {fold.name: groups_of_test(run) for fold, run in zip(folds, runs, strict=True)})
    return runs


def run_of_fold(fold: Fold, scratch: str = "") -> Run:
    """The fold's run. UserError for what it cannot be trained on, and where a row or none tests: there is nothing to
    correlate."""
    from regression.plan import rows_of

    run = prepare_run(fold.config, scratch)
    if (count := int(rows_of(run.plan, "test").size)) < 2:
        expected = "two or more rows of test"
        raise UserError("a fold without test rows", file=fold.split, key="split", found=count, expected=expected)
    return run


def groups_of_test(run: Run) -> set[str]:
    """The groups whose rows test in a run."""
    from regression.plan import rows_of

    return set(run.plan.sources["group_id"].take(rows_of(run.plan, "test")).to_pylist())


def folds_of(config: TrainFoldsConfig) -> list[Fold]:
    """A fold per CSV of the folder of splits, in the order of their numbers. MissingFile when there is none."""
    from pathray.store.storage import Storage

    check_output(config.output)
    base = {f: getattr(config, f) for f in TrainRegressionConfig.__dataclass_fields__}
    out = []
    for name, split in find_splits(config.splits).items():
        own = TrainRegressionConfig(**copy.deepcopy(base))
        own = replace(own, data=replace(own.data, split=split))
        own = make_paths_absolute(replace(own, logging=replace(own.logging, run_name=name)))
        out.append(Fold(name, own, Storage.of(str(own.output)).join(name), split))
    return out


def train_one(config: TrainRegressionConfig) -> Outputs:
    """A fold's run, from its checked config to its results."""
    return work_on(run_of(config, plan_of(config)))


if __name__ == "__main__":
    job(main, TrainFoldsConfig, CONFIGS_DIR)
