"""Mirrors a run's metrics to W&B: `python -m pathray.run.tracking.wandb_mirror`, a process that tails metrics.jsonl.

A process, because wandb's hooks wait at the end of the one that they are in for a server that may be down. Its first
line of input is a `MirrorSpec`; a second one, or the end of input, ends it. What it prints is a warning. Rows stay in
their file until they are told, so nothing is queued in memory. The run's id and what it was told are in
``wandb_run.json``, so that a resumed run continues the same one; rows that a resume trains again are not told twice.
Not here: who starts it (pathray.run.tracking.wandb_process).
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import sys
import tempfile
import threading
import uuid
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from pathray.errors import explain
from pathray.run.layout import CHECKPOINTS, ENCODER, EVALUATION_REPORT, METRICS, QUARANTINE_REPORT, RESULTS, WANDB_RUN
from pathray.run.tracking.tracked import numbers_of, read_if_changed
from pathray.store.metrics_log import MARKER, rows_of
from pathray.store.storage import Storage

EVERY_S, RETRY_S = 5.0, 60.0
INIT_S = 90  # W&B's own bound of a first connection
END_S = 900.0  # for uploads after the run's end
LEFT = (ENCODER, RESULTS, EVALUATION_REPORT, QUARANTINE_REPORT)


@dataclass(frozen=True)
class MirrorSpec:
    """What is mirrored where. `beside`: other files of rows, each with the number that is their x-axis. `config` has no
    secrets. `encoder`: upload the final one as an artifact."""

    run_dir: str
    mode: str
    project: str
    entity: str | None = None
    name: str | None = None
    group: str | None = None
    tags: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    beside: dict[str, str] = field(default_factory=dict)
    encoder: bool = False
    every_s: float = EVERY_S

    def to_line(self) -> str:
        return json.dumps(asdict(self))


class Mirror:
    """One run of W&B, begun or continued when there is something to tell."""

    def __init__(self, spec: MirrorSpec) -> None:
        self.spec, self.store = spec, Storage.of(spec.run_dir)
        self.run: Any = None
        self.contents: dict[str, bytes] = {}
        known = json.loads(self.store.read_bytes(WANDB_RUN)) if self.store.exists(WANDB_RUN) else {}
        self.run_id = str(known.get("run_id") or uuid.uuid4().hex[:8])
        self.told: dict[str, list[int]] = known.get("told", {})  # of the metrics, only the last

    def feed(self) -> int:
        """Tell the rows that W&B does not have yet; how many. Raises what wandb raises."""
        count = 0
        for name in (METRICS, *self.spec.beside):
            content = read_if_changed(self.store, name, self.contents.get(name))
            if content is not None:
                self._connect()
                count += sum(self._tell(name, row) for row in rows_of(content))
                self.contents[name] = content
        if count:
            self._note()
        return count

    def finish(self, exit_code: int) -> None:
        """Tell the rest and what the run has left, and end the run of W&B."""
        self.feed()
        self._connect()
        if exit_code == 0:
            self._tell_outputs()
        self.run.finish(exit_code=exit_code)
        self._note(finished=exit_code == 0)

    def _tell(self, name: str, row: dict[str, Any]) -> bool:
        told, seen = self.told.get(name, []), int(row[MARKER])
        if seen <= max(told, default=-1) if name == METRICS else seen in told:
            return False
        numbers = numbers_of(row)
        if name == METRICS:  # its position is W&B's step, which never falls
            self.run.log(numbers, step=seen)
            self.told[name] = [seen]
        else:
            numbers[self.spec.beside[name]] = numbers.pop(MARKER)
            self.run.log(numbers, step=max(self.told.get(METRICS, [0])))
            self.told[name] = [*told, seen]
        return True

    def _connect(self) -> None:
        if self.run is not None:
            return
        import wandb

        spec, mode = self.spec, cast(Literal["online", "offline"], self.spec.mode)
        settings = wandb.Settings(
            console="off",
            disable_code=True,
            disable_git=True,
            disable_job_creation=True,
            init_timeout=INIT_S,
            silent=True,
            x_disable_meta=True,  # the command line may hold a login
        )
        self.run = wandb.init(
            id=self.run_id, resume="allow", dir=_folder(self.store), mode=mode, project=spec.project,
            entity=spec.entity, name=spec.name, group=spec.group, tags=spec.tags, settings=settings,
            config={**spec.config, **system()},
        )  # fmt: skip
        for axis in spec.beside.values():
            self.run.define_metric(f"{axis.partition('/')[0]}/*", step_metric=axis)
        self._note()

    def _note(self, finished: bool = False) -> None:
        spec = self.spec
        record = {"run_id": self.run_id, "project": spec.project, "entity": spec.entity, "mode": spec.mode}
        content = json.dumps({**record, "told": self.told, "finished": finished})
        self.store.write_bytes(WANDB_RUN, content.encode())

    def _tell_outputs(self) -> None:
        from pathray.store.committed import list_committed

        kept = list_committed(self.store.join(CHECKPOINTS))
        paths = {name: self.store.join(name) for name in LEFT if self.store.exists(name)}
        if kept:
            paths["checkpoint"] = max(kept, key=lambda found: int(found.meta["images_seen"])).path
        self.run.summary.update({f"outputs/{name}": path for name, path in paths.items()})
        if self.spec.encoder and ENCODER in paths:
            self._upload_encoder()

    def _upload_encoder(self) -> None:
        import wandb

        artifact = wandb.Artifact(f"encoder-{self.run_id}", type="model", metadata={"from": self.store.join(ENCODER)})
        with tempfile.TemporaryDirectory() as scratch:
            for name in sorted(self.store.files(ENCODER)):
                path = Path(self.store.path(f"{ENCODER}/{name}"))
                if not self.store.local:
                    path = Path(scratch, name)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    self.store.get(f"{ENCODER}/{name}", path)
                artifact.add_file(str(path), name)
            self.run.log_artifact(artifact)


def is_finished(store: Storage) -> bool:
    """Whether W&B was told the whole of the run in this folder."""
    try:
        return store.exists(WANDB_RUN) and bool(json.loads(store.read_bytes(WANDB_RUN))["finished"])
    except (ValueError, KeyError, TypeError):  # damaged: W&B itself knows what it has
        return False


def system() -> dict[str, Any]:
    """What the run's driver runs on; W&B adds its own figures of the machine over time."""
    from importlib.metadata import PackageNotFoundError, version

    found: dict[str, Any] = {"system.host": platform.node(), "system.platform": platform.platform()}
    found |= {"system.python": platform.python_version(), "system.cpus": os.cpu_count()}
    for name in ("pathray", "torch", "ray"):
        with contextlib.suppress(PackageNotFoundError):
            found[f"system.{name}"] = version(name)
    return found


def _folder(store: Storage) -> str:
    """Where wandb keeps its files: in the run's folder, or in the local cache of a remote one."""
    if store.local:
        return store.path()
    from pathray.store.cache import private_cache

    return str(private_cache())


def _wait_for_end(ending: threading.Event, code: list[int]) -> None:
    line = sys.stdin.readline()
    if line.strip():
        code[0] = int(line)
    ending.set()


def _explain(error: Exception) -> str:
    """What wandb or storage says; the trace of anything else."""
    try:
        from wandb.errors import Error
    except ImportError:
        return explain(error, OSError)
    return explain(error, OSError, Error)


def _say(words: str) -> None:
    with contextlib.suppress(OSError):  # whoever started this may have ended
        print(json.dumps(words), flush=True)


def main() -> None:
    """Mirror until the end of input. The run ends as failed unless the second line says 0."""
    mirror, code, ending = Mirror(MirrorSpec(**json.loads(sys.stdin.readline()))), [1], threading.Event()
    threading.Thread(target=_wait_for_end, args=(ending, code), daemon=True).start()
    wait, failing = mirror.spec.every_s, False
    while not ending.wait(wait):
        try:
            mirror.feed()
            wait, failing = mirror.spec.every_s, False
        except Exception as e:  # the run must not end for its bookkeeping
            if not failing:
                _say(f"W&B could not be told; retrying, without further warnings: {_explain(e)}")
            wait, failing = RETRY_S, True
    limit = threading.Timer(END_S, os._exit, args=(1,))
    limit.daemon = True
    limit.start()
    try:
        mirror.finish(code[0])
    except Exception as e:
        _say(f"W&B could not be told to the end; metrics.jsonl has everything: {_explain(e)}")


if __name__ == "__main__":
    try:
        main()
    except Exception as error:
        _say(f"W&B: the mirror ended; metrics.jsonl has everything: {_explain(error)}")
