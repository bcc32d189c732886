"""The config of a sweep and all its checks that need no Ray, so that a started sweep does not fail for its settings.

Not here: sampling the space and running trials (ray_jobs.tune.tuner, ray_jobs.tune.trial).
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import math
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pathray.config.checks import check_between, check_positive
from pathray.config.load import Loaded, load_config, placement
from pathray.config.schema import keys_of
from pathray.errors import UserError
from pathray.evaluation.settings import EarlyStoppingConfig, SelectionConfig
from pathray.search.objective import VALIDATION, Objective
from pathray.search.space import Dimension, parse_space, word
from ray_jobs.shell.runtime import RuntimeConfig

CONFIG = "sweep.yaml"
CHANGES, RUN_NAME, SAVE_EVERY = "checkpoint.resume_changes", "logging.run_name", "training.save_every"
OWN = ("output", "checkpoint.resume", CHANGES, "logging.mlflow_parent", RUN_NAME)  # the sweep sets them


@dataclass
class AshaConfig:
    """Asynchronous successive halving over images seen."""

    grace_images: int | None = None  # no trial is stopped before this
    reduction_factor: float = 3.0  # keep the top 1/reduction_factor of the trials at each rung
    max_images: int | None = None  # None: each trial's own budget

    def __post_init__(self) -> None:
        check_positive(self, "asha", "grace_images", "max_images")
        check_between(self, "asha", 1.1, 100, "reduction_factor")


@dataclass
class PbtConfig:
    """Population based training: the worst trials continue from the weights of the best, with changed values."""

    perturbation_images: int | None = None  # images between two comparisons of trials
    quantile: float = 0.25  # this share of the trials, the worst, takes over the weights of the best

    def __post_init__(self) -> None:
        check_positive(self, "pbt", "perturbation_images")
        check_between(self, "pbt", 0.01, 0.5, "quantile")


@dataclass
class SweepConfig:
    """The job to search and its space. A trial is a run of the job in its own folder."""

    job: str = ""  # pretrain_ijepath …: a training job, as in python -m ray_jobs.JOB
    args: list[str] = field(default_factory=list)  # that job's arguments: [--config, smoke, KEY=VALUE, …]
    space: dict[str, Any] = field(
        default_factory=dict
    )  # {KEY: {loguniform: [1e-5, 1e-3]}}, see pathray/search/space.py
    objective: Objective = field(default_factory=Objective)
    search: str = "random"  # | grid | optuna (an extra: pip install 'pathray[sweep]')
    samples: int | None = None  # number of trials; a grid has one per point
    scheduler: str = "none"  # | asha | pbt
    asha: AshaConfig = field(default_factory=AshaConfig)
    pbt: PbtConfig = field(default_factory=PbtConfig)
    seed: int = 0  # of sampling the space
    max_concurrent: int = 1  # trials at the same time, each with the job's resources
    output: str | None = placement(None)  # the sweep's folder or URL
    restore: str | None = placement(None)  # the folder of a sweep to resume; no other key is needed
    runtime: RuntimeConfig = placement(default_factory=RuntimeConfig)

    def __post_init__(self) -> None:
        choices = {"search": ("random", "grid", "optuna"), "scheduler": ("none", "asha", "pbt")}
        for key, names in choices.items():
            if getattr(self, key) not in names:
                raise UserError("unknown choice", key=key, found=getattr(self, key), expected=" | ".join(names))
        for key in ("samples", "max_concurrent"):
            if (value := getattr(self, key)) is not None and value < 1:
                raise UserError(f"{key} must be >= 1", key=key, found=value, expected=">= 1")


@dataclass(frozen=True)
class TrainingJob:
    """A training job and its arguments."""

    name: str
    args: tuple[str, ...]

    @property
    def module(self) -> Any:
        return importlib.import_module(f"ray_jobs.{self.name}")

    @property
    def schema(self) -> type[Any]:
        """The config dataclass of the job's `main`."""
        schema: type[Any] = typing.get_args(typing.get_type_hints(self.module.main)["loaded"])[0]
        return schema

    def has(self, key: str) -> bool:
        return any(name == key for name, _, _ in keys_of(self.schema))

    def load(self, values: Mapping[str, Any], *words: str) -> Loaded[Any]:
        """The job's config: its arguments, then `values`, then the `key=value` words. UserError as in the job."""
        argv = [*self.args, *(word(key, value) for key, value in values.items()), *words]
        module = self.module
        return load_config(self.schema, argv, configs_dir=module.CONFIGS_DIR, groups=getattr(module, "GROUPS", ()))

    def words_for(self, folder: str) -> list[str]:
        """The `key=value` words that make `folder` itself the run's folder. A job that keeps several runs below its
        output also gets the run's name."""
        if not self.has(RUN_NAME):
            return [word("output", folder)]
        output, _, name = folder.rpartition("/")
        return [word("output", output), word(RUN_NAME, name)]


@dataclass(frozen=True)
class Sweep:
    """A checked config with its job, space and first values."""

    config: SweepConfig
    job: TrainingJob
    space: dict[str, Dimension]
    first: dict[str, Any]  # one value of every key
    base: Any  # the job's config with these values

    @property
    def trials(self) -> int:
        """The number of trials."""
        grids = (len(dimension.values) for dimension in self.space.values() if dimension.kind == "grid")
        return (self.config.samples or 1) * math.prod(grids)


def check_sweep(config: SweepConfig) -> Sweep:
    """The sweep described by `config`. UserError naming the key of anything that would make it or its trials fail."""
    job = training_job(config.job, config.args)
    space = parse_space(config.space)
    _check_search(config, space)
    _check_scheduler(config, space, job)
    _check_values(job, space)
    first = {key: dimension.probes[0] for key, dimension in space.items()}
    sweep = Sweep(config, job, space, first, job.load(first).config)
    _check_objective(sweep)
    _check_snapshots(sweep)
    return sweep


def training_job(name: str, args: Sequence[str]) -> TrainingJob:
    from ray_jobs.__main__ import jobs

    known = [job.rpartition(".")[2] for job in jobs()]
    if name not in known or name == "sweep":
        near = difflib.get_close_matches(name, known, 1)
        raise UserError("unknown training job", key="job", found=name, expected=near[0] if near else "pretrain_ijepath")
    job = TrainingJob(name, tuple(args))
    if not job.has("output") or not job.has("checkpoint.resume"):
        message, expected = "the job cannot be resumed", "a training job with output and checkpoint.resume"
        raise UserError(message, key="job", found=name, expected=expected)
    if job.has("splits"):
        message = "a cross-validation cannot be searched: its folds are separate runs, so it has no objective itself"
        expected = "job=train_regression with data.split of one fold, then train_folds with the values of best.yaml"
        raise UserError(message, key="job", found=name, expected=expected)
    for arg in args:
        if arg.startswith("-") and not arg.startswith("--config"):
            raise UserError(
                "this option cannot be used in a sweep", key="args", found=arg, expected="--config, key=value"
            )
        _check_own("args", arg.partition("=")[0], arg)
    return job


def _check_own(where: str, key: str, found: str) -> None:
    if key in OWN or key.startswith("runtime."):
        message = "the sweep sets this key for each trial" if key in OWN else "all trials run on the sweep's Ray"
        expected = "runtime.… of the sweep itself" if key.startswith("runtime.") else "remove it"
        raise UserError(message, key=where, found=found, expected=expected)


def _check_values(job: TrainingJob, space: Mapping[str, Dimension]) -> None:
    """Try every choice and both ends of every range in the job's config, with other keys at their first value."""
    try:
        job.load({})  # so that an error in the arguments is not reported for the space
    except UserError as e:
        if e.where["key"] not in space:
            raise
    first = {key: dimension.probes[0] for key, dimension in space.items()}
    for key, dimension in space.items():
        _check_own(f"space.{key}", key, key)
        for value in dimension.probes:
            try:
                job.load({**first, key: value})
            except UserError as e:
                where = {**e.where, "file": None, "key": f"space.{key}.{dimension.kind}"}
                about = f"{e.where['key']}: {e.message}" if e.where["key"] not in (None, key) else e.message
                raise UserError(about, **{**where, "found": where["found"] or value}) from e


def _check_search(config: SweepConfig, space: Mapping[str, Dimension]) -> None:
    grids = [key for key, dimension in space.items() if dimension.kind == "grid"]
    if config.search == "grid":
        if config.samples is not None:
            message = "samples cannot be set for a grid: it has one trial per point"
            raise UserError(message, key="samples", found=config.samples, expected="null, or search=random")
        if others := [key for key in space if key not in grids]:
            found = space[others[0]].kind
            message = "search=grid needs a grid for every key"
            raise UserError(message, key=f"space.{others[0]}", found=found, expected="{grid: […]}")
        return
    if grids:
        expected = "{choice: […]}, or search=grid"
        message = f"search={config.search} does not support grids"
        raise UserError(message, key=f"space.{grids[0]}", found="grid", expected=expected)
    if config.samples is None:
        raise UserError("`samples` is required", key="samples", expected="the number of trials, such as samples=8")
    if config.search == "optuna" and importlib.util.find_spec("optuna") is None:
        expected = "pip install 'pathray[sweep]'"
        raise UserError("optuna is not installed", key="search", found="optuna", expected=expected)


def _check_scheduler(config: SweepConfig, space: Mapping[str, Dimension], job: TrainingJob) -> None:
    if config.scheduler == "asha":
        grace, most = config.asha.grace_images, config.asha.max_images
        if grace is None:
            message = "`asha.grace_images` is required for scheduler=asha"
            raise UserError(message, key="asha.grace_images", expected="images")
        if most is not None and most < grace:
            message = "asha.max_images must be >= asha.grace_images"
            raise UserError(message, key="asha.max_images", found=most, expected=f">= {grace}")
    if config.scheduler != "pbt":
        return
    if config.pbt.perturbation_images is None:
        message = "`pbt.perturbation_images` is required for scheduler=pbt"
        raise UserError(message, key="pbt.perturbation_images", expected="images")
    if config.search != "random":
        raise UserError("scheduler=pbt needs search=random", key="search", found=config.search, expected="random")
    if (config.samples or 0) < 2:
        message = "scheduler=pbt needs at least two trials"
        raise UserError(message, key="samples", found=config.samples, expected=">= 2")
    if not job.has(CHANGES):
        message = "the job cannot resume a checkpoint with changed values, which scheduler=pbt needs"
        raise UserError(message, key="scheduler", found="pbt", expected=f"a job with {CHANGES}")
    if unknown := [key for key in space if not job.has(key)]:
        message = "scheduler=pbt can vary only single keys"
        raise UserError(message, key=f"space.{unknown[0]}", expected="a key of the job's config")


def _check_snapshots(sweep: Sweep) -> None:
    """UserError unless PBT's comparisons fall on snapshots, whose cadence evaluators determine."""
    tuning, every = getattr(sweep.base, "tuning", None), sweep.config.pbt.perturbation_images
    if sweep.config.scheduler == "pbt" and every and tuning is not None and tuning.enable and every % tuning.tune_every:
        expected = f"a multiple of tuning.tune_every = {tuning.tune_every}"
        message = "trials must be compared at snapshots"
        raise UserError(message, key="pbt.perturbation_images", found=every, expected=expected)


def _check_objective(sweep: Sweep) -> None:
    """UserError unless the job's config computes the validation's or evaluator's metric."""
    objective, key = sweep.config.objective, "objective.metric"
    if objective.metric.startswith(VALIDATION):
        names = getattr(sweep.job.module, "validation_metrics", None)
        known = names(sweep.base) if names is not None else []
        if objective.metric not in known:
            expected = ", ".join(known) or "a metric of the training (loss): this job does not validate"
            message = "validation does not compute this metric"
            raise UserError(message, key=key, found=objective.metric, expected=expected)
    if not objective.is_evaluators:
        return
    tuning = getattr(sweep.base, "tuning", None)
    if tuning is None or not tuning.enable:
        expected = "tuning.enable=true and tuning.plugins in args, or a metric of the training"
        raise UserError("no evaluator computes this metric", key=key, found=objective.metric, expected=expected)
    plugin, _, rest = objective.metric.partition("/")
    dataset, _, metric = rest.rpartition("/")
    try:
        selection = SelectionConfig(plugin, dataset, metric, objective.mode)
        replace(tuning, early_stopping=EarlyStoppingConfig(enable=True, selection=selection))
    except UserError as e:
        raise UserError(e.message, **{**e.where, "file": None, "key": key, "found": objective.metric}) from e


def check_output(config: SweepConfig) -> str:
    """The sweep's folder as a URL or an absolute path. UserError if it is not set or already has a sweep."""
    from pathray.store.storage import Storage

    if not config.output:
        raise UserError("`output` is required", key="output", expected="output=FOLDER or a URL")
    nearest = next((p for p in (Path(config.output), *Path(config.output).parents) if p.exists()), Path("/"))
    if "://" not in config.output and not nearest.is_dir():
        raise UserError("a file is in the way of the output folder", file=nearest, key="output", found=config.output)
    store = Storage.of(config.output)
    if store.exists(CONFIG):
        expected = f"restore={config.output}, or another output"
        raise UserError("the output already contains a sweep", file=store.join(CONFIG), key="output", expected=expected)
    return store.url


def restore_config(config: SweepConfig) -> SweepConfig:
    """The config of the sweep in the folder `config.restore`, with the runtime of `config`.

    MissingFile if there is no sweep; UserError for a given setting that differs from that sweep's.
    """
    from pathray.config.load import flatten
    from pathray.errors import MissingFile
    from pathray.store.storage import Storage

    store = Storage.of(str(config.restore))
    if not store.exists(CONFIG):
        raise MissingFile("no sweep found", file=store.join(CONFIG), key="restore", found=config.restore)
    saved = store.read_local(CONFIG, _read)
    if saved.output != store.url:
        message = "a sweep must be restored in its original folder"
        raise UserError(message, key="restore", found=store.url, expected=saved.output)
    given, theirs, default = (flatten(c) for c in (config, saved, SweepConfig()))
    for key, (value, _) in given.items():
        free = key in ("output", "restore") or key.startswith("runtime.")
        if not free and value != default.get(key, (None,))[0] and value != theirs.get(key, (None,))[0]:
            found, expected = value, theirs.get(key, (None,))[0]
            message = "the settings of a restored sweep cannot be changed"
            raise UserError(message, key=key, found=found, expected=expected)
    if config.output and Storage.of(config.output).url != store.url:
        message = "the output of a restored sweep cannot be changed"
        raise UserError(message, key="output", found=config.output, expected=store.url)
    return replace(saved, restore=store.url, runtime=config.runtime)


def _read(path: Path) -> SweepConfig:
    return load_config(SweepConfig, ["--config", str(path)], configs_dir=path.parent).config
