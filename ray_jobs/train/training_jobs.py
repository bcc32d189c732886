"""What the training jobs of all sciences share: where a run is and what it resumes from, and what is told to `fit`.

Of a config they want `output`, `checkpoint`, `logging`, `scaling`, `data` and, where the science has it, `tuning`.
Nothing here imports torch before there is a checkpoint.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from pathray.config.load import is_set
from pathray.errors import UserError
from pathray.run.layout import CHECKPOINTS, CONFIG, ENCODER, EVALUATION_REPORT, PLAN
from ray_jobs.shell.cli import Outputs
from ray_jobs.train.tracking_feed import tell_tracking, tracking_of, without_login

if TYPE_CHECKING:
    from pathray.data.plan import Plan
    from pathray.store.committed import Committed
    from pathray.store.storage import Storage
    from ray_jobs.train.job import TrainJob

log = logging.getLogger(__name__)
LONGER = "a longer budget with checkpoint.resume_changes=[{}] trains on"


def absolute(path: str | None) -> str | None:
    """A path as the command means it: a worker runs in another folder."""
    from pathray.store.storage import Storage

    return Storage.of(path).url if path and is_set(path) else path


def with_absolute_paths(config: Any, *keys: str) -> Any:
    """`config` with the paths under these keys absolute."""
    return replace(config, **{key: absolute(getattr(config, key)) for key in keys})


def make_paths_absolute(config: Any, **changes: Any) -> Any:
    """`config` with `changes`; output, checkpoint to resume from and what evaluations read are absolute. Of a trial's
    config, too, which has no output yet."""
    checkpoint = config.checkpoint
    if checkpoint.resume not in ("auto", "never"):
        checkpoint = replace(checkpoint, resume=absolute(checkpoint.resume) or "auto")
    if (tuning := _tuning(config)) is not None:
        changes["tuning"] = tuning.map_paths(absolute)
    return replace(config, output=absolute(config.output), checkpoint=checkpoint, **changes)


def check_output(output: str | None) -> None:
    """UserError without an output, or where a file is in its way."""
    if not output:
        raise UserError("output is required", key="output", expected="output=FOLDER or a URL")
    nearest = next((p for p in (Path(output), *Path(output).parents) if p.exists()), Path("/"))
    if "://" not in output and not nearest.is_dir():
        raise UserError("a file is in the way of the output folder", file=nearest, key="output", found=output)


def check_tuning(config: Any) -> None:
    """UserError for evaluations beside the training that cannot be; warnings for what they will leave out."""
    tuning = _tuning(config)
    if tuning is None or not tuning.enable:
        return
    if config.scaling.workers == 0:
        expected = "scaling.workers >= 1, or tuning.enable=false"
        raise UserError("evaluations during training need Ray", key="scaling.workers", found=0, expected=expected)
    from ray_jobs.tune.judges import judge_of

    for note in judge_of(tuning.plugins, "").check():
        log.warning("%s", note)


def checkpoint_to_resume(config: Any) -> Committed | None:
    """The checkpoint that this run would resume from."""
    from pathray.store.storage import Storage

    store, resume = Storage.of(str(config.output)), config.checkpoint.resume
    if resume in ("auto", "never") and not store.exists(CHECKPOINTS):
        return None  # told without importing torch
    from pathray.run.resume import find_checkpoint

    return find_checkpoint(store.url, config.logging.write_tag, resume)


def recorded_identity(config: Any) -> dict[str, Any]:
    """The identity of the run that this one resumes, as its checkpoint records it; empty for a fresh start."""
    newest = checkpoint_to_resume(config)
    return {} if newest is None else dict(newest.meta.get("identity", {}).get("values", {}))


def outputs_if_early_stopped(config: Any) -> Outputs | None:
    """The outputs of a run that early stopping has ended, which the same command leaves as it is."""
    from pathray.evaluation.results import Results

    stopping, newest = config.tuning.early_stopping, checkpoint_to_resume(config)
    if not (config.tuning.enable and stopping.enable and stopping.stop_training and newest is not None):
        return None
    decision = Results(str(config.output), newest.meta.get("identity", {}).get("hash"), stopping).decision()
    if decision is None or not decision.stop:
        return None
    log.warning(
        "early stopping ended this run (%s was best at %s images); tuning.early_stopping.enable=false resumes it",
        stopping.selection.key,
        f"{decision.best_images:,}",
    )
    return Outputs({"run": config.output, "checkpoint": newest.path, **evaluation_paths(config)})


def outputs_if_finished(config: Any, total_images: int, budget_keys: str) -> Outputs | None:
    """The outputs of a run that has seen its budget, is exported and, where evaluators are on, judged: there is nothing
    to start Ray for. None for any other."""
    from pathray.store.storage import Storage

    newest, store = checkpoint_to_resume(config), Storage.of(str(config.output))
    if newest is None or int(newest.meta["images_seen"]) < total_images or not _is_exported(store, newest):
        return None
    if _has_backlog(config, newest):
        return None
    seen = f"{int(newest.meta['images_seen']):,}"
    log.info("this run is finished (%s images): %s; %s", seen, store.url, LONGER.format(budget_keys))
    tell_tracking(config, store.url, newest)
    return Outputs({"run": config.output, "checkpoint": newest.path, "encoder": store.join(ENCODER)})


def _is_exported(store: Storage, newest: Committed) -> bool:
    from pathray.store.artifact import describe

    try:
        facts = describe(store.join(ENCODER))["provenance"]
    except UserError:  # none, or a damaged one: it is exported again
        return False
    identity = newest.meta.get("identity", {}).get("hash")
    return bool(facts.get("identity") == identity and facts.get("images_seen") == newest.meta["images_seen"])


def _has_backlog(config: Any, newest: Committed) -> bool:
    """Whether snapshots wait for evaluators."""
    if (tuning := _tuning(config)) is None or not tuning.enable:
        return False
    from pathray.evaluation.results import Results

    results = Results(str(config.output), newest.meta.get("identity", {}).get("hash"), tuning.early_stopping)
    judged = {record.images_seen for record in results.records()}
    return any(snapshot.images_seen not in judged for snapshot in results.snapshots())


def evaluation_paths(config: Any) -> dict[str, object]:
    """Where the evaluations of a run lie, if it has any."""
    if not config.tuning.enable:
        return {}
    from pathray.evaluation.results import BEST, ROWS
    from pathray.store.committed import list_committed
    from pathray.store.storage import Storage

    store = Storage.of(str(config.output))
    paths: dict[str, object] = {"robustness": store.join(ROWS)} if store.exists(ROWS) else {}
    if store.exists(EVALUATION_REPORT):
        paths["report"] = store.join(EVALUATION_REPORT)
    best = list_committed(store.join(CHECKPOINTS), BEST)
    return paths | ({"best": best[-1].path} if best else {})


def cpus_of(config: Any) -> float:
    """The logical CPUs that a run takes of Ray."""
    scaling, tuning = config.scaling, _tuning(config)
    training = scaling.workers * scaling.cpus_per_worker + (1.0 if config.data.decode_on == "cluster" else 0.5)
    return float(training + (tuning.execution.cpus if tuning is not None and tuning.enable else 0.0))


def decode_tasks(config: Any) -> int:
    """How many tasks of the cluster decode for each worker."""
    return int(config.data.threads) if config.data.decode_on == "cluster" else 0


def plan_folder(root: Any) -> str:
    """Where the plan is built: in the output folder, or on the local disk when that is remote."""
    if root.local:
        return str(root.join(PLAN))
    from pathray.store.cache import private_cache

    digest = hashlib.sha256(root.url.encode()).hexdigest()[:24]
    return str(private_cache() / f"{digest}-plan-built")


def save_config(config: Any, run_dir: str) -> None:
    """Write the resolved `config`, without logins, into the run's folder: `ray_jobs.stop` knows a run by it."""
    from pathray.store.storage import Storage
    from pathray.urls import public_values

    plain = OmegaConf.to_container(OmegaConf.structured(without_login(config)), enum_to_str=True)
    resolved = OmegaConf.to_yaml(OmegaConf.create(public_values(plain)))
    Storage.of(run_dir).write_bytes(CONFIG, resolved.encode())


def log_start(checkpoint: Committed | None, run_dir: str, total_images: int) -> None:
    """Say where the training starts: from the beginning, or from which checkpoint and how much is done."""
    if checkpoint is None:
        log.info("no checkpoint in %s: training starts from the beginning", run_dir)
        return
    seen = int(checkpoint.meta["images_seen"])
    done = f"{seen:,} of {total_images:,} images" if total_images else f"{seen:,} images"
    log.info("resuming from %s: %s done", checkpoint.path, done)


def progress_name(config: Any) -> str:
    """What the run's lines of progress begin with: "train", and the run's name where it was given one (a fold's), or
    that of the sweep's trial that it is."""
    parent, _, folder = str(getattr(config, "output", "")).rstrip("/").rpartition("/")
    name = getattr(config.logging, "run_name", None) or (folder if parent.rpartition("/")[2] == "trials" else "")
    return f"train {name}" if name else "train"


def train_job(
    config: Any,
    plan: Plan,
    assemble: Callable[..., Any],
    identity: Mapping[str, Any],
    *,
    run_dir: str,
    total_images: int,
    accelerator: str | None = None,
    start_metrics: Mapping[str, float] | None = None,
) -> TrainJob:
    """What `fit` wants to know of a run with the resolved `config`. `identity` is its fingerprint, `accelerator` what
    `begin` found. A login in `logging.tracking_uri` goes to MLflow alone."""
    from ray_jobs.train.job import TrainJob

    tracking, tuning = tracking_of(config), _tuning(config)
    log_start(checkpoint_to_resume(replace(config, output=run_dir)), run_dir, total_images)
    config = without_login(config)
    if accelerator is not None:  # what workers see of a machine may be more than what Ray was told
        config = replace(config, scaling=replace(config.scaling, accelerator=accelerator))
    return TrainJob(
        assemble=assemble,
        config=config,
        plan_path=plan.origin,
        run_dir=run_dir,
        scaling=config.scaling,
        resume=config.checkpoint.resume,
        resume_changes=config.checkpoint.resume_changes,
        tracking=tracking,
        start_metrics=dict(start_metrics or {}),
        total_images=total_images,
        identity={**identity["values"], "identity": identity["hash"]},
        decode_tasks=decode_tasks(config),
        accelerator=accelerator,
        tuning=tuning if tuning is not None and tuning.enable else None,
        identity_hash=identity["hash"],
        tag=config.logging.write_tag,
        name=progress_name(config),
    )


def _tuning(config: Any) -> Any:
    return getattr(config, "tuning", None)
