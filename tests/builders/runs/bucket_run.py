"""The toy science's run in a bucket, with snapshots that carry an encoder; what it left; where an outage may begin.

Importable by name, as the toy science is. Not here: the bucket and its outages (tests.builders.bucket).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
from safetensors.torch import load_file, save_file
from torch import Tensor

from pathray.data.plan import Plan
from pathray.device import Device
from pathray.evaluation.settings import DatasetConfig, PluginConfig, TuningConfig
from pathray.run import Outcome, RunSettings, train
from pathray.store import checkpoint
from pathray.store.committed import Committed, list_committed
from pathray.store.described import publish_with_description
from pathray.store.metrics_log import MetricsLog
from pathray.store.storage import Storage
from pathray.train.assembly import Assembly
from tests.builders.bucket import BucketFileSystem, Outage
from tests.builders.runs import toy_science
from tests.builders.runs.toy_science import ToyConfig
from tests.builders.runs.weights import state_hash

URL, BATCH, WEIGHTS, DESCRIPTION = "bucket://store/run", 12, "weights.safetensors", "artifact.json"
RUN = URL.partition("://")[2]
# Where the outage begins: the first call of this kind on such an object
STAGES: dict[str, tuple[str, str] | tuple[str, str, int]] = {
    "start of a rank": ("list", f"{RUN}/checkpoints"),
    "metrics": ("write", f"{RUN}/metrics.jsonl"),
    "STOP poll": ("look", f"{RUN}/STOP"),
    "checkpoint": ("write", f"{RUN}/checkpoints/toy-latest-*/tensors.safetensors"),
    "commit": ("write", f"{RUN}/checkpoints/toy-latest-*/COMMITTED.json"),
    "snapshot": ("write", f"{RUN}/checkpoints/toy-img*/encoder/{WEIGHTS}"),
    "pruning": ("remove", f"{RUN}/checkpoints/toy-latest-*"),
    "quarantine": ("write", f"{RUN}/quarantine/part-*"),
    "owner's beat": ("write", f"{RUN}/owner.json", 1),  # the first write is the start's own
    "export": ("write", f"{RUN}/encoder/{WEIGHTS}"),
    "report of unreadable units": ("write", f"{RUN}/quarantine.parquet"),
}
EVALUATIONS: dict[str, tuple[str, str] | tuple[str, str, int]] = {
    "an evaluation's row": ("write", f"{RUN}/robustness.jsonl"),
    "an evaluation's snapshot": ("read", f"{RUN}/checkpoints/toy-img*/encoder/{WEIGHTS}"),
    "list of snapshots": ("list", f"{RUN}/checkpoints", 6),
}
KEY = "pathorob/hospitals/ri"


@dataclass(frozen=True)
class ToyEncoder:
    """What snapshots carry: the toy network, written as an artifact is."""

    def names_in(self, modules: Any) -> dict[str, str]:
        return {name: f"net.{name}" for name in modules["net"].state_dict()}

    def write(self, directory: Any, folder: str, tensors: dict[str, Tensor], facts: Any) -> None:
        with directory.local_file(f"{folder}/{WEIGHTS}") as path:
            save_file(tensors, path)
        directory.write_bytes(f"{folder}/{DESCRIPTION}", json.dumps(dict(facts)).encode())


def export(scratch: str, recipe: Any, folder: str, facts: dict[str, Any]) -> None:
    weights = Path(scratch) / WEIGHTS
    save_file(recipe.modules["net"].state_dict(), weights)
    publish_with_description(Storage.of(folder), {WEIGHTS: weights}, DESCRIPTION, json.dumps(facts).encode())


def assemble(config: ToyConfig, plan: Plan, world: int) -> Assembly:
    """The toy assembly, exporting and with an encoder in its snapshots. `config.run` is a local folder."""
    parts = toy_science.assemble(config, plan, world)
    settings = replace(parts.settings, snapshot_every=2 * config.save_every)
    own: Any = lambda recipe: ToyEncoder()  # noqa: E731
    return replace(parts, settings=settings, encoder=own, export=partial(export, config.run), keep_last_n=1)


def assemble_evaluated(config: ToyConfig, plan: Plan, world: int) -> Assembly:
    """The same with evaluations next to the training."""
    return replace(assemble(config, plan, world), tuning=tuning())


def tuning() -> TuningConfig:
    plugin = PluginConfig(datasets={"hospitals": DatasetConfig("m.csv")})
    settings = TuningConfig(True, plugins=[plugin])
    return replace(settings, execution=replace(settings.execution, max_pending_jobs=99, keep_last_n_snapshots=99))


@contextlib.contextmanager
def outage(stage: str, seconds: float) -> Iterator[Outage]:
    """The bucket is away for `seconds` from the first call of one of STAGES or EVALUATIONS on."""
    operation, pattern, *spared = {**STAGES, **EVALUATIONS}[stage]
    found = Outage(operation, pattern, seconds, *spared)
    BucketFileSystem.outage = found
    try:
        yield found
    finally:
        BucketFileSystem.outage = None


def register(root: Path, setenv: Any) -> None:
    """Make the bucket in `root` known to this process; `setenv(name, value)` sets a variable."""
    setenv("BUCKET_ROOT", str(root / "bucket"))
    setenv("PATHRAY_CACHE_DIR", str(root / "cache"))
    fsspec.register_implementation("bucket", BucketFileSystem, clobber=True)


def train_in_bucket(scratch: Path, plan: Plan, settings: RunSettings | None = None, **changes: Any) -> Outcome:
    """The toy run with its folder in the bucket, in this process."""
    scratch.mkdir(exist_ok=True)
    config = ToyConfig(run=str(scratch), **changes)
    return train(assemble(config, plan, 1), plan, URL, Device.of("cpu"), settings=settings)


def evaluate_snapshots(evaluators: Any, trained: threading.Event) -> None:
    """Evaluate as Tune and its trials do, but in this thread, until the training has ended and nothing waits.

    An evaluation reads the snapshot's weights; its value is the mean of their bytes.
    """
    from pathray.evaluation.attempts import Attempts
    from ray_jobs.tune import evaluation_trial
    from ray_jobs.tune.searchers import FINISHED

    def judged(config: dict[str, Any], spec: Any) -> dict[str, Any]:
        data = Storage.of(config["encoder"]).read_bytes(WEIGHTS)
        found = {"metrics": {KEY: sum(data) / len(data)}, "notes": []}
        return {"judged": json.dumps(found), "evaluator_s": 0.0}

    spec = evaluation_trial.TrialSpec((), URL, "cpu", 1, retries=0)
    evaluation_trial.evaluate_once = judged  # type: ignore[assignment]
    while (found := evaluators.suggest("trial")) != FINISHED:
        if isinstance(found, dict):
            attempts = Attempts(Storage.of(URL), found["snapshot"])
            evaluators.record_trial("trial", evaluation_trial.evaluate_with_retries(found, spec, attempts), False)
        if trained.is_set():
            evaluators.over.set()
        time.sleep(0.05)


def left(run: str) -> dict[str, Any]:
    """What two equal runs have in common: digests of the newest state, of snapshots and artifact; rows; units that
    could not be read. Every committed file is verified."""
    found: dict[str, Any] = {}
    for one in list_committed(f"{run}/checkpoints"):
        tensors, meta = checkpoint.load(one.path)
        if "-img" in one.name:
            found[f"snapshot {meta['images_seen']}"] = state_hash(tensors), _encoder(one)
    newest = checkpoint.latest(f"{run}/checkpoints", "toy")
    assert newest is not None, f"no checkpoint in {run}"
    found["newest"] = newest.meta["images_seen"], state_hash(checkpoint.load(newest.path)[0])
    store = Storage.of(f"{run}/encoder")
    facts = json.loads(store.read_bytes(DESCRIPTION))
    found["artifact"] = facts["images_seen"], hashlib.sha256(store.read_bytes(WEIGHTS)).hexdigest()
    found["rows"] = [(row["images_seen"], row["loss"]) for row in MetricsLog(f"{run}/metrics.jsonl").read()]
    found["unreadable"] = _unreadable(Storage.of(run))
    return found


def lost_and_doubled(rows: list[Any], expected: list[Any]) -> tuple[int, int]:
    """How many rows are missing, and how many are there more than once or should not be."""
    missing = [row for row in expected if row not in rows]
    return len(missing), len(rows) - len(expected) + len(missing)


def wait_until_away(found: Outage, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while found.began is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert found.began is not None, "no outage began"


def _encoder(one: Committed) -> str:
    return state_hash(one.read(f"encoder/{WEIGHTS}", load_file))


def _unreadable(store: Storage) -> list[tuple[int, int, str]]:
    from pathray.store.sealed_parquet import of_bytes

    if not store.exists("quarantine.parquet"):
        return []
    rows = of_bytes(store.read_bytes("quarantine.parquet"), "report", "report").to_pylist()
    return [(row["position"], row["attempt"], row["reason"]) for row in rows]
