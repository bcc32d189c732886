"""Fine-tunes an OCT encoder, fold by fold, and judges the folds' models together on the persons that they did not see.

Each fold is a run of its own in `output`/fold_<k> (`output`/run with a split file), which the same command resumes or,
when it is finished, leaves as it is. Not here: the command (ray_jobs.finetune_oct).
"""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pathray.errors import MissingFile
from pathray.reports.summary import Picture, write_summary
from pathray.store.outages import START, through_outages
from pathray.store.storage import Storage
from ray_jobs.oct_downstream.probes import settings_of
from ray_jobs.shell.cli import Outputs
from ray_jobs.shell.run_summary import write_run_summary
from ray_jobs.train.plans import share_plan
from ray_jobs.train.trainer import begin, fit
from ray_jobs.train.training_jobs import (
    checkpoint_to_resume,
    decode_tasks,
    plan_folder,
    recorded_identity,
    save_config,
    train_job,
)

if TYPE_CHECKING:
    from oct.downstream.cohort import Cohort, Floats, Ints
    from oct.downstream.config import DownstreamConfig
    from oct.downstream.probing import Predictions
    from pathray.data.plan import Plan
    from pathray.data.splits import Split
    from pathray.run.outcome import Outcome

log = logging.getLogger(__name__)
TESTED = "tested.npz"  # a finished fold's predictions


@dataclass
class Fold:
    """A fold's number, its run's folder, its plan and its resolved config."""

    number: int
    folder: str
    plan: Plan
    config: Any
    identity: dict[str, Any]


def finetune(config: DownstreamConfig, cohort: Cohort, splits: Sequence[Split]) -> Outputs:
    """Train every fold (or `data.fold` alone) and write what their test persons say of them."""
    import numpy as np

    from oct.downstream.probing import Predictions as Found

    chosen = [config.data.fold] if config.data.fold is not None and len(splits) > 1 else list(range(len(splits)))
    units, values, fold, models = [], [], [], {}
    for number in chosen:
        name = f"fold_{number}" if len(splits) > 1 else "run"
        one = fold_of(config, cohort, splits[number], number, name)
        models[name] = Storage.of(one.folder).join("encoder")
        if (found := tested(one)) is None:
            outcome = train_fold(one)
            if outcome.artifact is None:  # interrupted: the same command resumes it
                return Outputs({"run": one.folder, "checkpoint": outcome.checkpoint})
            found = judge_fold(one)
        units.append(found[0])
        values.append(found[1])
        fold.append(np.full(len(found[0]), number))
    order = np.argsort(np.concatenate(units))
    whole = np.concatenate(values)[order]
    predictions = Found(
        np.concatenate(units)[order], whole if cohort.classes else whole[:, 0], np.concatenate(fold)[order]
    )
    asked = np.concatenate([splits[number].rows("test") for number in chosen])
    return _leave(config, cohort, predictions, sorted({*asked.tolist()} - {*predictions.units.tolist()}), models)


def fold_of(config: DownstreamConfig, cohort: Cohort, split: Split, number: int, name: str) -> Fold:
    """The run of a fold. UserError when its folder holds another run."""
    from oct.downstream.assembly import identity_of
    from oct.downstream.config import resolve
    from oct.downstream.plan import build_plan, identity
    from pathray.run.resume import check_resumable

    root = Storage.of(str(config.output)).at(name)
    own = replace(config, output=root.url)
    folder = plan_folder(root)
    plan = share_plan(build_plan(cohort, split, folder), folder, root)
    before = recorded_identity(own).get("optimization.global_batch")
    ready = resolve(own, config.scaling.ranks, plan.rows, before)
    known = identity_of(ready, identity(plan))
    if (newest := checkpoint_to_resume(own)) is not None:
        check_resumable(newest, known, config.checkpoint.resume_changes)
    return Fold(number, root.url, plan, ready, known)


def train_fold(fold: Fold) -> Outcome:
    """To the end of the budget, on the running Ray."""
    from oct.downstream.assembly import assemble
    from pathray.run.fence import hold
    from pathray.run.log import run_log

    config, store = fold.config, Storage.of(fold.folder)
    images = int(config.optimization.total_images or 0)
    log.info("fold %d: %d volumes train, %s volumes in all", fold.number, fold.plan.rows, f"{images:,}")
    with hold(fold.folder), run_log(store):
        accelerator = begin(fold.folder, config.scaling, decode_tasks(config))
        through_outages(lambda: save_config(config, fold.folder), START)
        job = train_job(
            config, fold.plan, assemble, fold.identity, run_dir=fold.folder, total_images=images,
            accelerator=accelerator,
        )  # fmt: skip
        outcome = fit(job)
        paths: dict[str, object] = {"checkpoint": outcome.checkpoint, "model": outcome.artifact}
        through_outages(lambda: write_run_summary(fold.folder, outcome, paths), "the summary")
    log.info("fold %d ended (%s) after %s images", fold.number, outcome.end, f"{outcome.images_seen:,}")
    return outcome


def judge_fold(fold: Fold) -> tuple[Ints, Floats]:
    """Predictions of the fold's test units, in a task with what a worker has; kept in the fold's folder."""
    import numpy as np

    from ray_jobs.train.resources import resolve_accelerator

    scaling = fold.config.scaling
    kind = resolve_accelerator(scaling.accelerator, scaling.autoscaling)
    kind = kind if kind == "cuda" else "cpu"
    if scaling.workers:
        import ray

        gpus = float(scaling.gpus_per_worker) if kind == "cuda" else 0.0
        task = ray.remote(num_cpus=scaling.cpus_per_worker, num_gpus=gpus)(_predict)
        units, values = ray.get(task.remote(fold.folder, fold.plan.origin, fold.config, kind))
    else:
        units, values = _predict(fold.folder, fold.plan.origin, fold.config, kind)
    data = io.BytesIO()
    np.savez(data, units=units, values=values, identity=np.array(fold.identity["hash"]))
    Storage.of(fold.folder).write_bytes(TESTED, data.getvalue())
    return units, values


def tested(fold: Fold) -> tuple[Ints, Floats] | None:
    """The predictions of a fold that is finished already; None for one that is not, or that was another run."""
    import numpy as np

    try:
        data = Storage.of(fold.folder).read_bytes(TESTED)
    except MissingFile:
        return None
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        if str(arrays["identity"]) != fold.identity["hash"]:
            return None
        log.info("fold %d is finished: %s", fold.number, fold.folder)
        return arrays["units"], arrays["values"]


def _predict(folder: str, plan_path: str, config: DownstreamConfig, kind: str) -> tuple[Ints, Floats]:
    from oct.downstream.artifact import load_model
    from oct.downstream.data import LabelledReader
    from oct.downstream.evaluate import predict_units
    from pathray.data.plan import Plan as Opened
    from pathray.device import Device

    plan, device = Opened.open(plan_path), Device.of(kind)
    trained = load_model(Storage.of(folder).join("encoder"))
    trained.net.to(device.torch_device)
    reader = LabelledReader.of(config, plan, trained.given).without_crops()
    batch, threads = config.optimization.batch_size_per_gpu, config.data.threads
    return predict_units(trained.predict, reader, plan, "test", device, batch=batch, threads=threads)


def _leave(
    config: DownstreamConfig, cohort: Cohort, predictions: Predictions, lost: Sequence[int], models: dict[str, str]
) -> Outputs:
    from oct.downstream import results

    store, name = Storage.of(str(config.output)), "fine-tuned"
    scores = {name: predictions.judge(cohort, config.probe.resamples, config.data.seed)}
    log.info("%s: %s", name, ", ".join(f"{metric} {results.show(i)}" for metric, i in scores[name].items()))
    written = results.write_predictions(store, cohort, {name: predictions})
    metrics = results.write_metrics(store, cohort, scores, {"kind": config.kind, "models": models})
    store.write_bytes(results.CHART, results.draw_scores(scores, "Fine-tuned encoder"))
    failed = [(str(cohort.names[unit]), "none of its volumes can be read") for unit in lost]
    summary = results.summary_of(
        "Fine-tuning", cohort, scores, failed=failed, facts={"encoder": config.model.encoder},
        settings={**settings_of(config), "optimization.lr": config.optimization.lr},
        files={"predictions": written, "metrics": metrics, **{f"model of {k}": path for k, path in models.items()}},
        pictures=[Picture(store.join(results.CHART), "Scores with 95% intervals over persons")],
    )  # fmt: skip
    write_summary(store.url, summary)
    return Outputs({"metrics": metrics, "predictions": written, **models})
