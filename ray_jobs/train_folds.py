"""A cross-validation of a regression: a run per fold, several at a time on one Ray, and what they say together.

    python -m ray_jobs.make_splits table=metadata.csv output=splits/loso kind=leave_one_group_out
    python -m ray_jobs.train_folds splits=splits/loso data.table=metadata.csv output=outputs/loso parallel=2

`output/fold_0` … are runs like any other. The same command goes on with those that are not finished; interrupted, all
of them checkpoint. A fold that fails does not end the others. What folds share, the plan's images and the features of
frozen backbones, is computed once.
"""

from __future__ import annotations

import copy
import logging
import posixpath
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from pathray.config.checks import at_least
from pathray.config.load import MISSING, Loaded, is_set, placement
from pathray.errors import MissingFile, UserError
from ray_jobs.shell.cli import Outputs, job
from ray_jobs.shell.runtime import ray_session
from ray_jobs.train.regression_checks import is_finished, tell_rehearsal
from ray_jobs.train.training_jobs import check_output
from ray_jobs.train_regression import (
    Run,
    TrainRegressionConfig,
    check_probes,
    checked_run,
    located,
    plan_of,
    run_of,
    work_on,
)
from ray_jobs.tune.mlflow import Parent
from regression.config import CONFIGS_DIR, DataConfig

if TYPE_CHECKING:
    from pathray.store.storage import Storage

log = logging.getLogger(__name__)
POLL_S = 0.5


@dataclass
class TrainFoldsConfig(TrainRegressionConfig):
    """A run config for every fold; `data.split` and `logging.run_name` are the folds' own."""

    data: DataConfig = field(default_factory=lambda: DataConfig(split=""))
    splits: str = placement(MISSING)  # folder of fold_0.csv, fold_1.csv …, which make_splits writes
    parallel: int = placement(1)  # folds at a time
    title: str | None = placement(None)  # of the table and the figures; null: the folder's name

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, "", 1, "parallel")
        for key, value in (("data.split", self.data.split), ("logging.run_name", self.logging.run_name)):
            if value:
                raise UserError("each fold has its own", key=key, found=value, expected="splits=FOLDER alone")


@dataclass
class Fold:
    """One fold's run, in a thread while it runs."""

    name: str
    config: TrainRegressionConfig
    folder: str
    thread: threading.Thread | None = None
    error: BaseException | None = None
    outputs: list[Outputs | None] = field(default_factory=list)

    def start(self) -> None:
        def work() -> None:
            try:
                self.outputs.append(work_on(run_of(self.config, plan_of(self.config))))
            except BaseException as e:  # carried to the main thread, which raises it when the others have ended
                self.error = e

        log.info("%s begins", self.name)
        self.thread = threading.Thread(target=work, name=f"pathray-{self.name}", daemon=True)
        self.thread.start()

    def below(self, parent: Parent) -> Fold:
        """The same, its MLflow run being a child of the cross-validation's."""
        if parent.run_id:
            own = replace(self.config.logging, tracking_uri=parent.uri, mlflow_parent=parent.run_id)
            self.config = replace(self.config, logging=own)
        return self

    @property
    def running(self) -> bool:
        return self.thread is not None and self.thread.is_alive()


def main(loaded: Loaded[TrainFoldsConfig]) -> Outputs | None:
    from pathray.store.storage import Storage
    from regression.cross_validation import unfinished, write_summary

    config = loaded.config
    folds = folds_of(config)
    check_probes(folds[0].config)
    if loaded.dry_run:
        with tempfile.TemporaryDirectory(prefix="pathray-") as scratch:
            return tell_rehearsal(checked(folds, scratch))
    runs = checked(folds)
    root = Storage.of(str(config.output))
    left = [fold for fold, run in zip(folds, runs, strict=True) if not is_finished(run)]
    log.info("%d folds, %d of them finished", len(folds), len(folds) - len(left))
    names = [fold.name for fold in folds]
    parent = Parent(root, config.logging)
    metrics: dict[str, float] = {}
    try:
        if left:
            at_a_time, scaling = min(config.parallel, len(left)), config.scaling
            cpus = at_a_time * (scaling.workers * scaling.cpus_per_worker + 0.5)
            with ray_session(config.runtime, cpus=cpus, autoscaling=scaling.autoscaling):
                train_all(root, [fold.below(parent) for fold in left], at_a_time)
        if waiting := unfinished(root, names):
            log.info("interrupted; the same command goes on with %s", ", ".join(waiting))
            return Outputs({"runs": root.url})
        text, metrics = write_summary(root, names, config.title or posixpath.basename(root.url.rstrip("/")))
    finally:
        parent.end(metrics, "FINISHED" if metrics else "FAILED" if sys.exc_info()[0] else "KILLED")
    print(text)
    return Outputs({"table": root.join("folds.md"), "per_gene": root.join("per_gene.csv"), "runs": root.url})


def checked(folds: list[Fold], scratch: str = "") -> list[Run]:
    """The folds' runs, after every check of every fold. In a dry run their plans are in `scratch`."""
    runs = [run_of_fold(fold, scratch) for fold in folds]
    check_apart(folds, runs)
    return runs


def run_of_fold(fold: Fold, scratch: str = "") -> Run:
    """The fold's run. UserError for what it cannot be trained on, and where a row or none tests: there is nothing to
    correlate."""
    from regression.plan import rows_of

    run = checked_run(fold.config, scratch)
    if (count := int(rows_of(run.plan, "test").size)) < 2:
        split, expected = fold.config.data.split, "two or more rows of test"
        raise UserError("a fold without test rows", file=split, key="split", found=count, expected=expected)
    return run


def check_apart(folds: list[Fold], runs: list[Run]) -> None:
    """UserError where a group tests in two folds, as when files of another number of folds were left in the folder: it
    would count twice."""
    from regression.plan import rows_of

    tested: dict[str, str] = {}
    for fold, run in zip(folds, runs, strict=True):
        rows = rows_of(run.plan, "test")
        for group in sorted(set(run.plan.sources["group_id"].take(rows).to_pylist())):
            if (first := tested.setdefault(group, fold.name)) != fold.name:
                found, expected = f"{group}, which {first} tests, too", "folds of one make_splits alone"
                raise UserError(
                    "a group tests twice", file=fold.config.data.split, key="split", found=found, expected=expected
                )


def folds_of(config: TrainFoldsConfig) -> list[Fold]:
    """A fold per CSV of the folder of splits, in the order of their numbers. MissingFile when there is none."""
    from pathray.store.storage import Storage

    check_output(config.output)
    if not is_set(config.splits):
        raise UserError("which folds?", key="splits", expected="a folder that make_splits has written")
    store = Storage.of(config.splits)
    names = [n.removesuffix(".csv") for n in store.list() if n.startswith("fold_") and n.endswith(".csv")]
    if not names:
        raise MissingFile("no folds here", file=store.url, key="splits", expected="fold_0.csv, fold_1.csv …")
    base = {f: getattr(config, f) for f in TrainRegressionConfig.__dataclass_fields__}
    out = []
    for name in sorted(names, key=lambda n: (len(n), n)):
        own = TrainRegressionConfig(**copy.deepcopy(base))
        own = replace(own, data=replace(own.data, split=store.join(f"{name}.csv")))
        own = located(replace(own, logging=replace(own.logging, run_name=name)))
        out.append(Fold(name, own, Storage.of(str(own.output)).join(name)))
    return out


def train_all(root: Storage, folds: list[Fold], at_a_time: int) -> None:
    """All folds, `at_a_time` of them together, on the running Ray. A STOP of the whole, which a signal writes, goes to
    each that runs; the first error is raised when all have ended."""
    from pathray.run.layout import STOP
    from pathray.run.stop import request_stop
    from ray_jobs.train.driver import stop_on_signals

    root.remove(STOP)
    waiting, stopping = list(folds), False
    with stop_on_signals(root):
        while waiting or any(fold.running for fold in folds):
            stopping = stopping or root.exists(STOP)
            running = [fold for fold in folds if fold.running]
            if stopping:
                waiting.clear()
                for fold in running:
                    request_stop(fold.folder)  # again and again: a run that only begins removes an older one
            while waiting and len(running) < at_a_time:
                running.append(waiting.pop(0))
                running[-1].start()
            time.sleep(4 * POLL_S if stopping else POLL_S)
    failed = [fold for fold in folds if fold.error is not None]
    for fold in failed:
        log.error("%s failed: %s", fold.name, fold.error)
    if failed and failed[0].error is not None:
        raise failed[0].error


if __name__ == "__main__":
    job(main, TrainFoldsConfig, CONFIGS_DIR)
