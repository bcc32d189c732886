"""Snapshots of a run, or one encoder, and labelled patches → robustness: PathoROB's metrics, probes, a report.

    python -m ray_jobs.evaluate watch=outputs/run
    python -m ray_jobs.evaluate snapshot=outputs/run/encoder output=outputs/judged --config evaluate_camelyon

watch evaluates every snapshot of a run, also while it trains elsewhere, with the plugins of the run's config or those
given. Results are written where the run's own evaluations would be, and existing ones are not repeated. It ends when
the run has ended, or after `idle_minutes` without a new snapshot. snapshot evaluates one snapshot or encoder artifact
of any science.
"""

from __future__ import annotations

import json
import logging
import time
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pathray
from pathray.config.load import Loaded
from pathray.errors import MissingFile, UserError
from pathray.evaluation.settings import TuningConfig
from pathray.run.layout import CHECKPOINTS, CONFIG, ENCODER, EVALUATION_REPORT, MLFLOW_RUN, PROGRESS
from ray_jobs.shell.cli import Outputs, job
from ray_jobs.shell.dry_run import check_files, tell
from ray_jobs.shell.runtime import RuntimeConfig, ray_session

log = logging.getLogger(__name__)

CONFIGS_DIR = Path(pathray.__file__).parent / "evaluation" / "configs"
FRESH_S, LOOK_S = 60.0, 1.0


@dataclass
class EvaluateConfig:
    watch: str | None = None  # a run's folder or URL
    snapshot: str | None = None  # a snapshot's or an encoder artifact's folder or URL
    output: str | None = None  # for `snapshot`: the folder of its results
    tuning: TuningConfig = field(default_factory=TuningConfig)
    accelerator: str = "auto"  # device for tuning.execution.device=auto: auto | cpu | cuda
    idle_minutes: float = 10.0  # watch ends after this time without a new snapshot; 0: only existing snapshots
    mlflow: bool = True
    tracking_uri: str | None = None  # null: the run's own, else SQLite next to the results
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)

    def __post_init__(self) -> None:
        if self.accelerator not in ("auto", "cpu", "cuda"):
            raise UserError(
                "unknown accelerator", key="accelerator", found=self.accelerator, expected="auto, cpu, cuda"
            )
        if self.idle_minutes < 0:
            raise UserError("idle_minutes must be >= 0", key="idle_minutes", found=self.idle_minutes, expected=">= 0")


def main(loaded: Loaded[EvaluateConfig]) -> Outputs | None:
    from ray_jobs.tune.judges import judge_of

    config = make_paths_absolute(loaded.config)
    folder, given = _subject(config)
    tuning = _tuning(config)
    judge = judge_of(tuning.plugins, "")
    for note in judge.check():
        log.warning("%s", note)
    if loaded.dry_run:
        images = check_files(judge.images(), "the evaluators' manifests", "tuning.plugins")
        return tell((len(tuning.plugins), "evaluators"), (images, "images"))
    with ray_session(config.runtime, cpus=tuning.execution.cpus):
        _evaluate(replace(config, tuning=tuning), folder, given)
    return _outputs(folder)


def make_paths_absolute(config: EvaluateConfig) -> EvaluateConfig:
    """The config with absolute paths, since evaluators run in another folder. UserError unless exactly one of `watch`
    and `snapshot` is set."""
    from pathray.store.storage import Storage

    def absolute(path: str | None) -> str | None:
        return Storage.of(path).url if path else path

    if (config.watch is None) == (config.snapshot is None):
        raise UserError("set either watch or snapshot", key="watch", expected="watch=RUN or snapshot=FOLDER")
    if config.snapshot and not config.output:
        raise UserError("`output` is required with snapshot", key="output", expected="output=FOLDER or a URL")
    return replace(
        config,
        watch=absolute(config.watch),
        snapshot=absolute(config.snapshot),
        output=absolute(config.output),
        tuning=config.tuning.map_paths(absolute),
    )


def _subject(config: EvaluateConfig) -> tuple[str, list[Any] | None]:
    """The folder of the results and, for `snapshot`, the snapshot with its encoder's folder."""
    from pathray.evaluation.backlog import Snapshot
    from pathray.store.artifact import describe
    from pathray.store.storage import Storage

    if config.watch is not None:
        store = Storage.of(config.watch)
        if not any(map(store.exists, (CONFIG, CHECKPOINTS))):
            expected = "the output folder of a started training job"
            raise MissingFile("no run found", file=store.url, key="watch", expected=expected)
        return store.url, None
    encoder = Storage.of(str(config.snapshot))
    inside = encoder.at(ENCODER)
    found = inside if not encoder.exists("artifact.json") and inside.exists("artifact.json") else encoder
    description = describe(found.url)
    _check_own(str(config.output), description["sha256"])
    return str(config.output), [Snapshot(found.url, int(description["provenance"].get("images_seen", 0)), 0)]


def _check_own(output: str, encoder: str) -> None:
    """UserError if the folder has results of another encoder, which would be mistaken for this one's."""
    from pathray.evaluation.results import ROWS, Results

    others = {row["identity"] for row in Results(output, None).rows} - {encoder}
    if others:
        where, found = f"{output.rstrip('/')}/{ROWS}", f"sha256 {min(others)}"
        message = "the output contains evaluations of another encoder"
        raise UserError(message, file=where, key="output", found=found, expected="another folder")


def _tuning(config: EvaluateConfig) -> TuningConfig:
    """The evaluation settings: those given, or without plugins the whole `tuning` of the run's config."""
    tuning = config.tuning
    if not tuning.plugins and config.watch is not None:
        tuning = recorded_tuning(config.watch)
    tuning = replace(tuning, enable=True)
    if config.watch is None:
        tuning = replace(tuning, early_stopping=replace(tuning.early_stopping, enable=False))
    return tuning


def recorded_tuning(run_dir: str) -> TuningConfig:
    """The `tuning` section of a run's config. UserError if it has no evaluators."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    from pathray.store.storage import Storage

    store, name = Storage.of(run_dir), CONFIG
    expected = "your own tuning.plugins (--config …)"
    if not store.exists(name):
        raise MissingFile("the run's config does not exist", file=store.join(name), key="watch", expected=expected)
    try:
        found: Any = OmegaConf.create(store.read_bytes(name).decode())
        section = found.get("tuning") or {}
        plugins = section.get("plugins")
    except (ValueError, AttributeError, AssertionError, OmegaConfBaseException, YAMLError) as e:
        said = " ".join(str(e).split())[:200]
        raise UserError("the run's config is damaged", file=store.join(name), found=said, expected=expected) from e
    if not plugins:
        message = "the run's config has no evaluators"
        raise UserError(message, file=store.join(name), key="tuning.plugins", found=[], expected=expected)
    try:
        tuning = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(TuningConfig), section))
    except OmegaConfBaseException as e:
        raise UserError(f"the run's config does not fit this version: {e}", file=store.join(name), key="tuning") from e
    assert isinstance(tuning, TuningConfig)
    return tuning


def _evaluate(config: EvaluateConfig, folder: str, given: list[Any] | None) -> None:
    import ray

    from pathray.store.artifact import describe
    from pathray.store.storage import Storage
    from ray_jobs.train.resources import resolve_accelerator
    from ray_jobs.tune.evaluation_resources import request_of
    from ray_jobs.tune.evaluation_runner import Evaluators

    store = Storage.of(folder)
    request = request_of(config.tuning.execution, resolve_accelerator(config.accelerator), ray.cluster_resources())
    live = given is None and _beats(store)
    identity = None if given is None else describe(given[0].path)["sha256"]
    evaluators = Evaluators(
        folder, config.tuning, request, identity=identity, owner=False, limited=live, snapshots=given
    )
    with _mlflow(config, store), evaluators:
        while given is None and evaluators.is_working and not _has_ended(config, store, evaluators):
            time.sleep(LOOK_S)
        evaluators.drain()
    if not evaluators.judged:
        log.warning(
            "all snapshots are already in robustness.jsonl, evaluated by the plugins of that time; to use others, set "
            "snapshot=SNAPSHOT output=ANOTHER_FOLDER"
        )


def _has_ended(config: EvaluateConfig, store: Any, evaluators: Any) -> bool:
    """Whether the run has ended, judged by its folder, or has had no new snapshot for a while."""
    if _beats(store):
        return False
    if store.exists("encoder/artifact.json"):
        from pathray.store.artifact import describe

        seen = describe(store.join(ENCODER))["provenance"].get("images_seen", 0)
        if seen >= max((s.images_seen for s in evaluators.results.snapshots()), default=0):
            return True
    return bool(time.monotonic() - evaluators.new_at >= 60 * config.idle_minutes)


def _beats(store: Any) -> bool:
    """Whether the run's trainer wrote its heartbeat within the last minute (on a local or shared disk only)."""
    try:
        beat = json.loads(store.read_bytes(PROGRESS))
        return "end" not in beat and bool(time.time() - beat["time"] < FRESH_S)
    except (MissingFile, ValueError, KeyError, TypeError):
        return False


def _mlflow(config: EvaluateConfig, store: Any) -> Any:
    """Log results to the training's MLflow run, or to a new one if it has none."""
    uri = config.tracking_uri
    if not config.mlflow or (uri is None and not store.local):
        return nullcontext()
    from pathray.evaluation.results import ROWS, TUNE_IMAGES
    from pathray.run.tracking.mlflow import MlflowFeeder

    own = not store.exists(MLFLOW_RUN)
    if uri is None and not own:
        uri = _known_uri(store, MLFLOW_RUN)
    return MlflowFeeder(
        store.join(ROWS), uri=uri, experiment="evaluations", run_name=store.url, marker=TUNE_IMAGES, ends=own
    )


def _known_uri(store: Any, name: str) -> str:
    try:
        return str(json.loads(store.read_bytes(name))["tracking_uri"])
    except (ValueError, KeyError, TypeError) as e:
        expected = "the run's MLflow record; set tracking_uri, or delete the file"
        raise UserError("the file is damaged", file=store.join(name), found=str(e), expected=expected) from e


def _outputs(folder: str) -> Outputs:
    """The job's outputs, after logging the newest results. UserError if no evaluation succeeded."""
    from pathray.evaluation.results import ROWS, Results
    from pathray.store.storage import Storage

    store, rows = Storage.of(folder), Results(folder, None).rows
    judged = [row for row in rows if row["status"] == "ok"]
    if not rows:
        expected = "snapshots named …-img…, with an encoder in them"
        raise UserError(
            "there is no snapshot to evaluate", file=store.join(CHECKPOINTS), found="none", expected=expected
        )
    if not judged:
        raise UserError(f"no evaluation succeeded: {rows[-1].get('error', '')}", file=store.join(ROWS))
    for row in sorted(judged, key=lambda row: row["images_seen"])[-1:]:
        for name in sorted(
            k for k, v in row.items() if "/" in k and not k.startswith("tune/") and isinstance(v, float)
        ):
            log.info("%-50s %8.4f", name, row[name])
        for note in row.get("notes", []):
            log.info("%s", note)
        for what, why in row.get("failed", {}).items():
            log.warning("%s failed: %s", what, why)
    return Outputs({"robustness": store.join(ROWS), "report": store.join(EVALUATION_REPORT)})


if __name__ == "__main__":
    job(main, EvaluateConfig, CONFIGS_DIR)
