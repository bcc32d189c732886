"""Trains all splits for all seeds, then a model of all slides if asked, and has them judged.

    output/fold_0 …            the runs of the first seed, with splits/, predictions, scores, report and models/
    output/seed_1/fold_0 …     those of another seed, with the same files but for the splits
    output/seeds.json          the spread over seeds
    output/refit               the run of all labelled slides

Not here: one run (ray_jobs.mil.runs), the command (ray_jobs.train_mil), what is written of it (mil.results).
"""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ray_jobs.shell.runtime import ray_session
from ray_jobs.train.folds import Fold, train_all

if TYPE_CHECKING:
    from mil.cohort import Cohort
    from pathray.data.splits import Split
    from ray_jobs.train_mil import TrainMILConfig

log = logging.getLogger(__name__)
SPLITS, REFIT = "splits", "refit"
Splits = Mapping[str, "Split"]


def train_and_judge(config: TrainMILConfig, cohort: Cohort, splits: Splits) -> dict[str, object]:
    """The files that came of it; only the folder where a stop was asked for."""
    configs = seeds_of(config, cohort, splits)
    runs = [run for own in configs.values() for run in runs_of(own, seed_of(config, own))]
    if not train_runs(config, runs):
        return {"runs": str(config.output)}
    out = judge_seeds(configs, cohort, splits)
    if config.refit:
        run = refit_run(config, cohort, splits)
        if train_runs(config, [run]):
            out[REFIT] = run.folder
    return out


def seeds_of(config: TrainMILConfig, cohort: Cohort, splits: Splits) -> dict[int, TrainMILConfig]:
    """The config of each seed. Splits that were made here are written below the output first."""
    from mil.splits import write_splits
    from pathray.store.storage import Storage

    root, first = Storage.of(str(config.output)), config.training.seed
    folder = config.splits.folder or root.join(SPLITS)
    if not config.splits.folder:
        write_splits(folder, cohort, splits)
    out = {}
    for seed in range(first, first + config.seeds):
        own = copy.deepcopy(config)
        output = root.url if seed == first else root.join(f"seed_{seed}")
        training = replace(own.training, seed=seed)
        out[seed] = replace(own, output=output, training=training, splits=replace(own.splits, folder=folder))
    return out


def seed_of(config: TrainMILConfig, own: TrainMILConfig) -> str:
    """What comes before a run's name: nothing for the first seed."""
    return "" if own.training.seed == config.training.seed else f"seed_{own.training.seed}/"


def runs_of(own: TrainMILConfig, prefix: str) -> list[Fold]:
    """A run per split of one seed."""
    from mil.splits import split_files
    from pathray.store.storage import Storage

    root = Storage.of(str(own.output))
    out = []
    for name, path in split_files(str(own.splits.folder)).items():
        folder = root.join(name)
        config = replace(copy.deepcopy(own), output=folder, splits=replace(own.splits, folder=path))
        out.append(Fold(f"{prefix}{name}", config, folder, path))
    return out


def train_runs(config: TrainMILConfig, runs: Sequence[Fold]) -> bool:
    """Train what is unfinished; False where a stop was asked for before all were."""
    from mil.results import finished_identity
    from pathray.store.storage import Storage
    from ray_jobs.mil.runs import is_finished, train_fold

    left = [run for run in runs if not is_finished(run.config)]
    older = {run.name: finished_identity(run.folder) for run in left}  # None, or of other labels or settings
    log.info("%d of %d runs are finished", len(runs) - len(left), len(runs))
    if left:
        at_a_time, scaling = min(config.parallel, len(left)), config.scaling
        cpus = at_a_time * (scaling.ranks * scaling.cpus_per_worker + 0.5)
        with ray_session(config.runtime, cpus=cpus, autoscaling=scaling.autoscaling, needed=bool(scaling.workers)):
            train_all(Storage.of(str(config.output)), left, at_a_time, train_fold)
    if waiting := [run.name for run in left if finished_identity(run.folder) in (None, older[run.name])]:
        log.info("interrupted; the same command resumes %s", ", ".join(waiting))
    return not waiting


def judge_seeds(configs: Mapping[int, TrainMILConfig], cohort: Cohort, splits: Splits) -> dict[str, object]:
    """Judge every seed in its own folder, the first one last, with the spread over all."""
    from mil.judging.predictions import of_table
    from mil.results import joined_predictions, judge_folds
    from mil.results.folds import to_json
    from mil.results.seeds import SEEDS, spread_of_seeds
    from pathray.store.storage import Storage

    (_, first), *others = configs.items()
    root, spread, out = Storage.of(str(first.output)), None, dict[str, object]()
    for _, own in others:
        judge_folds(own, cohort, splits)
    if others:
        tables = {seed: joined_predictions(own, cohort, splits) for seed, own in configs.items()}
        by_seed = {seed: of_table(table, cohort.classes) for seed, table in tables.items()}
        spread = spread_of_seeds(by_seed, resamples=first.eval.resamples, seed=first.splits.seed)
        root.write_bytes(SEEDS, to_json(spread))
        out["seeds"] = root.join(SEEDS)
    else:
        root.remove(SEEDS)  # of an earlier start with more seeds
    written = judge_folds(first, cohort, splits, spread)
    write_validation(list(configs.values()), splits)
    return {**written, **out}


def write_validation(configs: Sequence[TrainMILConfig], splits: Splits) -> None:
    """One row of metrics in the output of the first seed: the means over splits and seeds of the validation scores in
    which states were chosen. A search compares them; the scores of test slides are not for choosing."""
    from mil.results.models import mean_validation
    from pathray.run.layout import METRICS
    from pathray.store.storage import Storage

    row = mean_validation([str(own.output) for own in configs], splits)
    Storage.of(str(configs[0].output)).write_bytes(METRICS, json.dumps(row, allow_nan=False).encode() + b"\n")


def refit_run(config: TrainMILConfig, cohort: Cohort, splits: Splits) -> Fold:
    """The run that trains on all labelled slides, for the median of the passes after which the splits' models were
    best: nothing is left to choose a state on."""
    from mil.results.models import best_passes
    from mil.splits import write_splits
    from pathray.data.splits import Split
    from pathray.store.storage import Storage

    root = Storage.of(str(config.output)).at(REFIT)
    passes = best_passes(config, splits)
    everyone = cohort.names.astype("<U5")
    everyone[:] = "train"
    files = write_splits(root.join(SPLITS), cohort, {"run": Split(everyone, {"kind": "all-train"})})
    training = replace(config.training, max_epochs=passes, slides=None)
    own = replace(copy.deepcopy(config), output=root.url, training=training)
    log.info("refit: all %d slides for %.3g passes", len(cohort.names), passes)
    return Fold(REFIT, replace(own, splits=replace(own.splits, folder=files["run"])), root.url, files["run"])
