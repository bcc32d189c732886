"""Predictions of slides and their truth → every score with its interval over patients, figures, and a page. No Ray.

    python -m ray_jobs.evaluate_mil predictions=outputs/mil/oof_predictions.parquet output=outputs/mil_evaluation
    python -m ray_jobs.evaluate_mil predictions=preds.csv chosen_on=preds_val.csv output=outputs/evaluation

A table has slide_id, label, patient_id where there is one, and prob_<class> for each class or `predicted` (of numbers).
Thresholds are chosen on `chosen_on`; without it on the same slides, which is optimistic and said so.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from mil.sections import CONFIGS_DIR
from pathray.config.checks import check_one_of, check_positive
from pathray.config.load import MISSING, Loaded, placement
from ray_jobs.shell.cli import Outputs, job
from ray_jobs.shell.dry_run import tell
from ray_jobs.train.training_jobs import check_output, with_absolute_paths

log = logging.getLogger(__name__)


@dataclass
class EvaluateMILConfig:
    predictions: str = MISSING  # parquet or CSV
    output: str = MISSING  # a folder or URL
    chosen_on: str | None = None  # another such table, of validation slides
    label: str = "label"  # the column of the truth
    patient_column: str = "patient_id"
    join_by: str = "mean"  # | max: slides of a patient
    resamples: int = 2000  # of patients
    seed: int = 0
    title: str | None = placement(None)

    def __post_init__(self) -> None:
        check_one_of(self, "", join_by=("mean", "max"))
        check_positive(self, "", "resamples")


def main(loaded: Loaded[EvaluateMILConfig]) -> Outputs | None:
    from mil.judging.output import write_judgement
    from mil.judging.predictions import read_predictions
    from pathray.stats.patients import How
    from pathray.store.storage import Storage

    config = loaded.config
    check_output(config.output)
    config = with_absolute_paths(config, "predictions", "output", "chosen_on")
    columns = {"label": config.label, "patient": config.patient_column}
    predictions = read_predictions(config.predictions, **columns)
    chosen_on = read_predictions(config.chosen_on, **columns) if config.chosen_on else None
    patients = len(set(predictions.patients.tolist()))
    log.info(
        "%d slides of %d patients, classes %s", len(predictions), patients, ", ".join(predictions.classes) or "none"
    )
    if loaded.dry_run:
        return tell((len(predictions), "slides"))
    how: How = "max" if config.join_by == "max" else "mean"
    written = write_judgement(
        Storage.of(config.output), predictions, chosen_on, title=config.title or f"Evaluation of {config.label}",
        facts=[("Predictions", config.predictions)], how=how, resamples=config.resamples, seed=config.seed,
    )  # fmt: skip
    return Outputs(written)


if __name__ == "__main__":
    job(main, EvaluateMILConfig, CONFIGS_DIR)
