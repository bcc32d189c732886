"""Image → gene expression: train on a table of images and targets, through Ray, and report on the held-out groups.

    python -m ray_jobs.make_splits table=metadata.csv output=split.csv
    python -m ray_jobs.train_regression data.table=metadata.csv data.split=split.csv output=outputs/regression

A run has a folder of its own below `output`, named after what sets it apart unless `logging.run_name` says otherwise.
The same command resumes an unfinished run of the same config; what is finished is left as it is.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pathray.config.load import Loaded, is_set, placement
from pathray.errors import UserError
from pathray.run.layout import ENCODER, RESULTS, STOP
from pathray.run.outcome import Outcome
from pathray.store.outages import START, Looks, through_outages
from ray_jobs.regression.checks import check_rows, is_finished, keep_results, tell_rehearsal
from ray_jobs.regression.runs import Run, plan_of, run_of
from ray_jobs.shell.cli import Outputs, job
from ray_jobs.shell.run_summary import write_run_summary
from ray_jobs.shell.runtime import RuntimeConfig, ray_session
from ray_jobs.train import training_jobs
from ray_jobs.train.tracking_feed import check_tracking
from ray_jobs.train.trainer import begin, fit
from ray_jobs.train.training_jobs import (
    absolute,
    check_output,
    cpus_of,
    decode_tasks,
    save_config,
    train_job,
)
from regression.config import CONFIGS_DIR, RunConfig

if TYPE_CHECKING:
    from pathray.store.storage import Storage
    from regression.features import FeatureFolder

log = logging.getLogger(__name__)


@dataclass
class TrainRegressionConfig(RunConfig):
    """A run config, and where it runs."""

    runtime: RuntimeConfig = placement(default_factory=RuntimeConfig)


def main(loaded: Loaded[TrainRegressionConfig]) -> Outputs | None:
    config = make_paths_absolute(loaded.config)
    check_output(config.output)
    check_tracking(config)
    check_probes(config)
    if loaded.dry_run:
        with tempfile.TemporaryDirectory(prefix="pathray-") as scratch:
            return tell_rehearsal([prepare_run(config, scratch)])
    return work_on(prepare_run(config))


def prepare_run(config: TrainRegressionConfig, scratch: str = "") -> Run:
    """The run of `config`, its plan in the folder `scratch` if one is given. UserError where its rows cannot do what is
    asked for; a warning where they do it in another way."""
    run = run_of(config, plan_of(config, scratch))
    check_rows(run, in_epochs=config.train.images is None)
    return run


def validation_metrics(config: TrainRegressionConfig) -> list[str]:
    """What a run's rows of metrics have of its validation: a sweep's objective may be one of them."""
    names = ["spearman", "pearson", "mse", "n_undefined"]
    if config.eval.samplewise:
        names += [f"samplewise_{name}{more}" for name in ("spearman", "pearson") for more in ("", "_undefined")]
    return [f"val/{name}" for name in names]


def work_on(run: Run) -> Outputs:
    """Train, judge and leave the results, as far as that has not been done."""
    from pathray.run.fence import hold
    from pathray.store.storage import Storage

    store = Storage.of(run.folder)
    done = Outputs({"run": run.folder, "model": store.join(ENCODER), "metrics": store.join(RESULTS)})
    if is_finished(run):
        return done
    with hold(run.folder):
        return _train_and_judge(run, store, done)


def _train_and_judge(run: Run, store: Storage, done: Outputs) -> Outputs:
    from pathray.run.log import run_log
    from ray_jobs.regression.frozen_features import FeaturesStopped

    config = run.config
    through_outages(lambda: keep_results(run), START)
    # Before the features of baselines: `ray_jobs.stop` knows the run by its config
    through_outages(lambda: save_config(config, run.folder), START)
    scaling = config.scaling
    session = ray_session(
        config.runtime, cpus=cpus_of(config), autoscaling=scaling.autoscaling, needed=bool(scaling.workers)
    )
    with run_log(store), session:
        accelerator = begin(run.folder, config.scaling, decode_tasks(config))  # a STOP holds from here on
        try:
            kept = features_for(run)
            outcome = train(run, accelerator)
        except FeaturesStopped:
            log.info("stopped while features were computed; the same command resumes")
            return Outputs({"run": run.folder})
        log.info("ended (%s) after %s images", outcome.end, f"{outcome.images_seen:,}")
        if outcome.artifact is None:  # interrupted: the same command resumes it
            _summarise(run, outcome, {"checkpoint": outcome.checkpoint})
            return Outputs({"run": run.folder, "checkpoint": outcome.checkpoint})
        judge(run, outcome.end, kept)
        _summarise(run, outcome, {"model": outcome.artifact, "checkpoint": outcome.checkpoint})
    return done


def _summarise(run: Run, outcome: Outcome, files: dict[str, object]) -> None:
    through_outages(lambda: write_run_summary(run.folder, outcome, files), "the summary")


def make_paths_absolute(config: TrainRegressionConfig) -> TrainRegressionConfig:
    """With every path absolute: a worker runs in another folder than the command."""
    for key in ("table", "split"):
        if not is_set(getattr(config.data, key)):
            raise UserError(f"no {key} was given", key=f"data.{key}", expected=f"data.{key}=FILE")
    data = replace(config.data, table=str(absolute(config.data.table)), split=str(absolute(config.data.split)))
    model = replace(config.model, artifact=absolute(config.model.artifact), weights=absolute(config.model.weights))
    probes = {name: str(absolute(path)) for name, path in config.eval.probes.items()}
    done: TrainRegressionConfig = training_jobs.make_paths_absolute(
        config, data=data, model=model, eval=replace(config.eval, probes=probes)
    )
    return done


def check_probes(config: TrainRegressionConfig) -> None:
    """Before training, since they are asked after it: MissingFile or UserError for one that is no encoder of images."""
    if not config.eval.probes:
        return
    from ray_jobs.regression.frozen_features import probe_config
    from regression.model import preprocessing

    for artifact in config.eval.probes.values():
        preprocessing(probe_config(config, artifact))


def train(run: Run, accelerator: str | None = None) -> Outcome:
    """To the end of the budget, on the running Ray and what `begin` found."""
    from regression.assembly import assemble
    from regression.features import uses_cache

    config, batch = run.config, run.config.train
    log.info(
        "an update sees %d images = %d x %d x %d workers; %d rows train",
        int(batch.global_batch or 0), batch.batch_size, batch.grad_accum_steps, config.scaling.ranks, run.plan.rows,
    )  # fmt: skip
    job = train_job(
        config, run.plan, assemble, run.identity, run_dir=run.folder, total_images=int(batch.images or 0),
        accelerator=accelerator,
    )  # fmt: skip
    if uses_cache(config):
        from ray_jobs.regression.frozen_features import ensure_features

        stopped = is_asked_to_stop(run)
        folder = ensure_features(config, run.plan, config.scaling, "of the frozen backbone", stopped).folder
        run.config = replace(config, model=replace(config.model, features=folder))
        job.config = replace(job.config, model=run.config.model)
    return fit(job)


def features_for(run: Run) -> dict[str, FeatureFolder]:
    """What the baselines are fitted to, by name. Before the training: who waits for days does not want to hear at the
    end that a test image cannot be read. UserError naming it; FeaturesStopped when the run is asked to stop."""
    from ray_jobs.regression.frozen_features import ensure_features, probe_config
    from regression.features import check_evaluated

    config, scaling = run.config, run.config.scaling
    kept: dict[str, FeatureFolder] = {}
    stopped = is_asked_to_stop(run)
    if config.eval.baselines:
        kept["initial"] = ensure_features(config, run.plan, scaling, "of the backbone as it starts", stopped)
    for name, artifact in config.eval.probes.items():
        kept[name] = ensure_features(probe_config(config, artifact), run.plan, scaling, f"of {name}", stopped)
    for folder in kept.values():
        check_evaluated(folder, run.plan)
    return kept


def is_asked_to_stop(run: Run) -> Callable[[], bool]:
    from pathray.store.storage import Storage

    store, looks = Storage.of(run.folder).without_retries(), Looks(STOP)
    return lambda: looks.look(lambda: store.exists(STOP), False)


def judge(run: Run, end: str, kept: dict[str, FeatureFolder]) -> None:
    """The run's results and those of its baselines, in a task with what one worker has: a GPU, if they had one. In this
    process where there are no workers."""
    from ray_jobs.train.resources import resolve_accelerator

    config, scaling = run.config, run.config.scaling
    kind = resolve_accelerator(scaling.accelerator, scaling.autoscaling)
    if scaling.workers == 0:
        _judge(run.folder, run.plan.origin, config, end, kept, "cuda" if kind == "cuda" else "cpu")
        return
    import ray

    gpus = float(scaling.gpus_per_worker) if kind == "cuda" else 0.0
    task = ray.remote(num_cpus=scaling.cpus_per_worker, num_gpus=gpus)(_judge)
    ray.get(task.remote(run.folder, run.plan.origin, config, end, kept, "cuda" if gpus else "cpu"))


def _judge(folder: str, plan_path: str, config: RunConfig, end: str, kept: dict[str, FeatureFolder], kind: str) -> None:
    """Waits for storage here: an error that has left its task does not say whether it passes."""
    through_outages(lambda: _write_results(folder, plan_path, config, end, kept, kind), "the results")


def _write_results(
    folder: str, plan_path: str, config: RunConfig, end: str, kept: dict[str, FeatureFolder], kind: str
) -> None:
    from pathray.data.plan import Plan
    from pathray.device import Device
    from regression.baseline import predictions
    from regression.reports.report import write_results

    plan = Plan.open(plan_path)
    baselines = {}
    for name, where in kept.items():
        found = where.load()
        if name == "initial":
            baselines["colour"] = predictions(found.colours, plan, config.seed)
        baselines[name] = predictions(found.seen, plan, config.seed)
    write_results(folder, plan, config, end, Device.of(kind), baselines)


if __name__ == "__main__":
    job(main, TrainRegressionConfig, CONFIGS_DIR)
