"""A feature store and labels of slides → trained and judged MIL classifiers, one per fold of whole patients.

    python -m ray_jobs.train_mil data.csv=slides.csv data.store=stores/uni2h model=abmil output=outputs/mil
    python -m ray_jobs.train_mil data=gej encoder=univ1 model=perceiver splits=kfold5 training.lr=1e-4 parallel=2

Each fold is a run in `output`/fold_<k>, `parallel` of them at a time; the same command resumes what is unfinished and
leaves what is finished. Every patient is tested once, by a model that has not seen him: oof_predictions.parquet and
metrics.json say what came of it, with intervals over patients. models/ has the best fold's model and the ensemble; with
refit=true refit/ has one of all slides. With seeds=5 everything is trained five times, and the spread is reported.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mil.config import RunConfig
from mil.sections import CONFIGS_DIR, GROUPS
from pathray.config.checks import check_at_least
from pathray.config.load import Loaded, placement
from pathray.errors import UserError
from ray_jobs.shell.cli import Outputs, job
from ray_jobs.shell.dry_run import tell
from ray_jobs.shell.runtime import RuntimeConfig
from ray_jobs.train import training_jobs
from ray_jobs.train.training_jobs import absolute, check_output

if TYPE_CHECKING:
    from mil.cohort import Cohort
    from mil.store.reading import Store

log = logging.getLogger(__name__)


@dataclass
class TrainMILConfig(RunConfig):
    """A run config, and where it runs."""

    parallel: int = placement(1)  # folds at a time
    seeds: int = placement(1)  # trainings of all splits: training.seed, training.seed + 1 …; their spread is reported
    refit: bool = placement(False)  # then a model of all labelled slides
    runtime: RuntimeConfig = placement(default_factory=RuntimeConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, "", 1, "parallel", "seeds")
        if self.parallel > 1 and self.scaling.workers == 0:
            expected = "parallel=1, or scaling.workers >= 1"
            raise UserError("several folds at a time need Ray", key="parallel", found=self.parallel, expected=expected)


def main(loaded: Loaded[TrainMILConfig]) -> Outputs | None:
    from mil.splits import check_duplicates, check_parts, splits_of
    from ray_jobs.mil.training import train_and_judge

    check_output(loaded.config.output)
    config = make_paths_absolute(loaded.config)
    store, cohort = read_inputs(config)
    splits = splits_of(cohort, config.splits)
    check_parts(cohort, splits)
    check_primary(config)
    check_model(config, store, cohort)
    folder, allowed = None if loaded.dry_run else str(config.output), config.splits.allow_duplicates
    check_duplicates(store, cohort, cohort.slides, splits, allowed=allowed, folder=folder)
    if loaded.dry_run:
        return tell((len(cohort.names), "labelled slides"), (cohort.patients, "patients"), (len(splits), "splits"))
    return Outputs(train_and_judge(config, cohort, splits))


def validation_metrics(config: TrainMILConfig) -> list[str]:
    """What a sweep may compare: means over splits and seeds of the validation slides' scores."""
    from mil.validation import names_of

    return [f"val/{name}" for name in names_of(config.data.task)]


def read_inputs(config: TrainMILConfig) -> tuple[Store, Cohort]:
    """The store and the labelled slides. UserError if too many labelled slides are not in the store."""
    from mil.cohort import read_cohort
    from mil.store.reading import Store as Opened

    data = config.data
    store = Opened(str(data.store))
    cohort = read_cohort(
        str(data.csv), store, label=data.label, task=data.task, label_map=data.label_map,
        time=data.time, event=data.event, slide_column=data.slide_column,
        patient_column=data.patient_column,
    )  # fmt: skip
    log.info("%s; features of width %d", cohort, store.dim)
    lost = [name for name, why in cohort.left_out if why == "not in the store"]
    if lost:
        log.warning("%d labelled slides are not in the store, such as %s", len(lost), lost[0])
    if len(lost) > data.max_left_out_fraction * (len(lost) + len(cohort.names)):
        message, found = "labelled slides are not in the store", f"{len(lost)}, such as {lost[0]}"
        expected = f"at most data.max_left_out_fraction={data.max_left_out_fraction} of them"
        raise UserError(message, file=str(data.csv), key=data.slide_column, found=found, expected=expected)
    return store, cohort


def check_primary(config: TrainMILConfig) -> None:
    """UserError for a metric that no validation of the task gives."""
    from mil.validation import names_of

    names, primary = names_of(config.data.task), config.eval.primary
    if primary is not None and primary not in names:
        message = f"not a score of validation slides in {config.data.task}"
        raise UserError(message, key="eval.primary", found=primary, expected=" | ".join(names))


def check_model(config: TrainMILConfig, store: Store, cohort: Cohort) -> None:
    """UserError for a batch, a model, or weights, that cannot be built for these features, classes and positions."""
    from mil.config import resolve
    from mil.model.build import build_net, initial_digest
    from mil.target import Target

    initial_digest(config)
    resolve(config, config.scaling.ranks, len(cohort.names))
    counts = tuple(1 for _ in cohort.classes)
    net = build_net(config, Target(store.dim, cohort.label, cohort.task, cohort.classes, counts=counts))
    if net.aggregator.uses_coords and (lacking := [i for i in cohort.slides.tolist() if store.positions(i) is None]):
        message, found = "the model needs positions", f"{len(lacking)} slides without, such as {store.ids[lacking[0]]}"
        expected = "bags with coords, or another model"
        raise UserError(message, file=store.path, key="model.name", found=found, expected=expected)


def make_paths_absolute(config: TrainMILConfig) -> TrainMILConfig:
    """With every path absolute: a worker runs in another folder than the command. UserError for a missing key."""
    for key, expected in (("csv", "a table of slides"), ("store", "a folder that build_store wrote")):
        if not getattr(config.data, key):
            raise UserError(f"data.{key} is required", key=f"data.{key}", expected=expected)
    data = replace(config.data, csv=absolute(config.data.csv), store=absolute(config.data.store))
    training = replace(config.training, aggregator_weights_path=absolute(config.training.aggregator_weights_path))
    splits = replace(config.splits, folder=absolute(config.splits.folder))
    done: TrainMILConfig = training_jobs.make_paths_absolute(config, data=data, training=training, splits=splits)
    return done


if __name__ == "__main__":
    job(main, TrainMILConfig, CONFIGS_DIR, GROUPS)
