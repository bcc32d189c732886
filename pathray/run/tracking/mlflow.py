"""Feeds a run's metrics to MLflow, from a thread on the driver that tails metrics.jsonl; training never waits for it.

The feeder may be restarted at any time, and several may feed one run: they ask MLflow which rows the run already has,
so none is doubled. MLflow cannot forget a value. When rows that it has were cut back, a new MLflow run starts with all
rows, and the old one is tagged `pathray.continued_by`. A server that does not answer is tried once, for seconds, and
again at the next look or start. Trouble with MLflow is logged, never raised into the job. Secrets are kept out of
parameters. Not here: the file and its rows (pathray.store.metrics_log), pictures of the curves.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from pathray.errors import explain
from pathray.run.layout import MLFLOW_LOCK, MLFLOW_RUN
from pathray.run.tracking.tracked import numbers_of, public_params, read_if_changed
from pathray.store.metrics_log import MARKER, TIME, rows_of
from pathray.store.storage import Storage
from pathray.urls import public, public_text, sqlite_uri

log = logging.getLogger(__name__)

CONTINUED_BY, CONTINUES = "pathray.continued_by", "pathray.continues"
REQUEST_S, SILENT_S = "10", 20.0  # of one request; without any answer, at the end of a job
GONE = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "INVALID_STATE")
LONGEST_NAME, LONGEST_PARAM, METRICS_PER_CALL = 250, 500, 900


@dataclass
class _Fed:
    """A file of rows, the metric that marks its rows in MLflow, and which of them (step, milliseconds) MLflow has."""

    name: str
    marker: str
    fed: set[tuple[int, int]] = field(default_factory=set)
    content: bytes | None = None
    asked: bool = False  # of MLflow, in this look


class MlflowFeeder:
    """Logs every row of `metrics_path` into one MLflow run, at step `images_seen`.

    uri: MLflow's; by default SQLite, ``mlflow.db`` beside the metrics, or in the working directory when they are
    remote. beside: other files of rows in the same folder that belong to the same run, each with its `marker`: the
    metric that tells which of a file's rows MLflow has (at step `images_seen`, as all of them). tags: of the MLflow
    run. As a context manager it feeds while the block runs, and ends the MLflow run as finished or failed, unless
    `ends` is False (a job that adds to another's run). The run's id stands in ``mlflow_run.json`` beside the metrics,
    so a restarted job continues it.
    """

    def __init__(
        self,
        metrics_path: str,
        *,
        experiment: str = "pathray",
        run_name: str | None = None,
        uri: str | None = None,
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
        marker: str = MARKER,
        beside: Mapping[str, str] | None = None,
        ends: bool = True,
        every_s: float = 5.0,
    ) -> None:
        folder, _, name = metrics_path.rpartition("/")
        self._files = [_Fed(name, marker), *(_Fed(other, its) for other, its in (beside or {}).items())]
        self._store = Storage.of(folder or ".")
        self.uri = uri or default_uri(self._store)
        self._experiment, self._run_name, self._params = experiment, run_name, redact(params) if params else {}
        self._tags, self._ends = dict(tags or {}), ends
        self._every_s, self.run_id = every_s, ""
        self._client: Any = None
        self._status, self._failing, self._answered = "FINISHED", False, time.monotonic()
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> MlflowFeeder:
        self._thread = threading.Thread(target=self._tail, name="pathray-mlflow", daemon=True)
        self._thread.start()
        return self

    def close(self, status: str = "FINISHED") -> None:
        """Feed what is left and end the MLflow run (``FINISHED``, ``KILLED`` or ``FAILED``); problems are logged.

        Returns also when a server has given no answer for SILENT_S seconds: the next start tells it what is missing.
        """
        self._status = status
        self._ending.set()
        if self._thread is None:
            self.start()
        assert self._thread is not None
        self._answered = time.monotonic()
        while self._thread.is_alive():
            self._thread.join(0.1)
            if not is_local(self.uri) and time.monotonic() - self._answered > SILENT_S:
                log.warning(
                    "MLflow at %s does not answer; metrics.jsonl has everything; the next start sends what is missing",
                    public(self.uri),
                )
                return

    def __enter__(self) -> MlflowFeeder:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self.close("FINISHED" if kind is None else "FAILED")

    def feed(self) -> int:
        """Log the rows that the run does not have yet; returns how many. Raises what MLflow raises."""
        fresh = {
            file.name: content
            for file in self._files
            if (content := read_if_changed(self._store, file.name, file.content)) is not None
        }
        if self._client is not None and not fresh:
            return 0
        with self._feed_lock():
            client = self._connect()
            if any(self._was_cut_back(file, fresh.get(file.name)) for file in self._files):
                client = self._continue_in_new_run(client)
                fresh = {
                    file.name: content
                    for file in self._files
                    if (content := read_if_changed(self._store, file.name, None)) is not None
                }
            count = sum(self._feed_file(client, file, fresh[file.name]) for file in self._files if file.name in fresh)
            for file in self._files:
                file.asked = False
            return count

    def _was_cut_back(self, file: _Fed, content: bytes | None) -> bool:
        """Whether MLflow has rows that the file does not have, or has otherwise by now."""
        return self._ends and content is not None and not file.fed <= {_mark(row) for row in rows_of(content)}

    def _feed_file(self, client: Any, file: _Fed, content: bytes) -> int:
        steps = {step for step, _ in file.fed}
        fresh = [row for row in rows_of(content) if row[MARKER] not in steps]
        if fresh and not file.asked:  # another feeder of this run may have been first
            file.fed = self._marks(client, file)
            steps = {step for step, _ in file.fed}
            fresh = [row for row in fresh if row[MARKER] not in steps]
        for rows in _batches(fresh):
            client.log_batch(self.run_id, metrics=[metric for row in rows for metric in _metrics(row, file.marker)])
            file.fed |= {_mark(row) for row in rows}
            self._answered = time.monotonic()
        file.content = content
        return len(fresh)

    def _tail(self) -> None:
        while not self._ending.wait(self._every_s):
            try:
                self.feed()
                self._failing = False
            except Exception as e:  # the job must not end for its bookkeeping
                if not self._failing:
                    said = explain(e, *mlflow_errors())
                    log.warning("MLflow could not be fed; retrying, without further warnings: %s", said)
                self._failing = True
        try:
            self.feed()
            if self._ends:
                self._connect().set_terminated(self.run_id, self._status)
        except Exception as e:
            log.warning(
                "MLflow could not be fed to the end; metrics.jsonl has everything; the next start sends the rest: %s",
                explain(e, *mlflow_errors()),
            )

    @contextlib.contextmanager
    def _feed_lock(self) -> Iterator[None]:
        """No other feeder of this folder asks and sends at the same time, where the folder is on a disk."""
        if not self._store.local or not self._store.exists():
            yield
            return
        with open(self._store.path(MLFLOW_LOCK), "ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _connect(self) -> Any:
        """The client, with the run that this metrics file belongs to (found again or begun)."""
        if self._client is not None and self._recorded_run() == self.run_id:
            return self._client
        client = client_of(self.uri)
        self.run_id = self._known_run(client) or self._new_run(client, self._tags)
        self._answered = time.monotonic()
        self._log_params(client, self._params)
        self._know_rows(client)
        self._client = client
        return client

    def _know_rows(self, client: Any) -> None:
        for file in self._files:
            file.fed, file.content, file.asked = self._marks(client, file), None, True
            self._answered = time.monotonic()

    def _marks(self, client: Any, file: _Fed) -> set[tuple[int, int]]:
        return {(m.step, m.timestamp) for m in client.get_metric_history(self.run_id, file.marker)}

    def _continue_in_new_run(self, client: Any) -> Any:
        """A new MLflow run with the old one's parameters and tags, which the file's rows are told from the first on."""
        old = client.get_run(self.run_id)
        tags = {k: v for k, v in old.data.tags.items() if not k.startswith("mlflow.") or k == "mlflow.parentRunId"}
        new = self._new_run(client, {**tags, **self._tags, CONTINUES: old.info.run_id}, name=old.info.run_name)
        log.warning(
            "MLflow has rows that were cut back when the run resumed: run %s continues in %s", old.info.run_id, new
        )
        client.set_tag(old.info.run_id, CONTINUED_BY, new)
        client.set_terminated(old.info.run_id, "KILLED")
        self.run_id = new
        self._log_params(client, dict(old.data.params))
        self._log_params(client, self._params)
        self._know_rows(client)
        return client

    def _recorded_run(self) -> str | None:
        if not self._store.exists(MLFLOW_RUN):
            return None
        known = json.loads(self._store.read_bytes(MLFLOW_RUN))
        same = unquote(known["tracking_uri"]) == unquote(public(self.uri))
        return str(known["run_id"]) if same else None

    def _known_run(self, client: Any) -> str | None:
        known = self._recorded_run()
        if known is None:
            return None
        from mlflow.exceptions import MlflowException

        try:
            if self._ends:
                client.update_run(known, status="RUNNING")
            else:
                client.get_run(known)
        except MlflowException as e:
            if e.error_code not in GONE:  # away for now
                raise
            log.warning("the MLflow run %s is gone (%s): a new one begins", known, public_text(str(e)))
            return None
        return known

    def _new_run(self, client: Any, tags: Mapping[str, str], name: str | None = None) -> str:
        experiment = client.get_experiment_by_name(self._experiment)
        number = experiment.experiment_id if experiment else client.create_experiment(self._experiment)
        run_id = str(client.create_run(number, run_name=name or self._run_name, tags=dict(tags)).info.run_id)
        record = {"run_id": run_id, "tracking_uri": public(self.uri)}
        self._store.write_bytes(MLFLOW_RUN, json.dumps(record).encode())
        return run_id

    def _log_params(self, client: Any, wanted: Mapping[str, str]) -> None:
        """The parameters that the run does not have yet: MLflow refuses other values, and those at the start hold."""
        from mlflow.entities import Param
        from mlflow.exceptions import MlflowException

        known = client.get_run(self.run_id).data.params
        params = [Param(key, value) for key, value in wanted.items() if key not in known]
        try:
            for first in range(0, len(params), 100):
                client.log_batch(self.run_id, params=params[first : first + 100])
        except MlflowException as e:
            log.warning("MLflow does not take the parameters: %s", public_text(str(e)))


def default_uri(store: Storage) -> str:
    """SQLite beside the metrics, or in the working directory when they are remote."""
    return sqlite_uri(os.path.abspath(store.path("mlflow.db") if store.local else "mlflow.db"))


def is_local(uri: str) -> bool:
    """Whether an MLflow is a file or folder of this machine, which answers, if slowly."""
    return "://" not in uri or uri.startswith(("sqlite:", "file:"))


def mlflow_errors() -> tuple[type[Exception], ...]:
    """What MLflow raises when a server or its database does not take something."""
    try:
        from mlflow.exceptions import MlflowException
    except ImportError:
        return OSError, ImportError
    return OSError, MlflowException


def client_of(uri: str) -> Any:
    """MLflow's client, whose requests are tried once and for seconds: MLflow's own retries take minutes."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", REQUEST_S)
    from mlflow import MlflowClient

    return MlflowClient(uri)


def within(seconds: float, action: Callable[[], Any]) -> Any:
    """What `action` gives or raises. TimeoutError when it takes longer; it continues in a daemon thread meanwhile."""
    result: dict[str, Any] = {}

    def run() -> None:
        try:
            result["value"] = action()
        except BaseException as e:  # raised by the caller
            result["error"] = e

    thread = threading.Thread(target=run, name="pathray-bounded", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise TimeoutError(f"no answer within {seconds:g} s")
    if "error" in result:
        raise result["error"]
    return result["value"]


def redact(params: Mapping[str, Any]) -> dict[str, str]:
    """Parameters as MLflow takes them: nested ones under dotted names, as short texts without secrets.

    A value is a secret by its name; logins and signatures are taken out of URLs.
    """
    return {_name(key): _plain_text(value) for key, value in public_params(params).items()}


def _name(key: str) -> str:
    """MLflow refuses brackets and whatever else is not a letter, a digit or one of ``_-. :/``."""
    return re.sub(r"[^\w\-. :/]", "_", key.replace("[", ".").replace("]", ""))[:LONGEST_NAME]


def _plain_text(value: Any) -> str:
    text = str(value)
    return text if len(text) <= LONGEST_PARAM else text[: LONGEST_PARAM - 1] + "…"


def _mark(row: Mapping[str, Any]) -> tuple[int, int]:
    """What tells a row from another of the same step: its time, in milliseconds."""
    return int(row[MARKER]), int(1e3 * row.get(TIME, 0.0))


def _metrics(row: Mapping[str, Any], marker: str) -> list[Any]:
    """The numbers of a row at step `images_seen`, which only the file that it marks has among its metrics."""
    from mlflow.entities import Metric

    stamp = _mark(row)[1]
    numbers = numbers_of(row)
    step = int(numbers.pop(MARKER))
    return [Metric(key, float(value), stamp, step) for key, value in {**numbers, marker: step}.items()]


def _batches(rows: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Whole rows, as many as one call takes."""
    batches: list[list[dict[str, Any]]] = []
    size = METRICS_PER_CALL + 1
    for row in rows:
        if size + len(row) > METRICS_PER_CALL:
            batches.append([])
            size = 0
        batches[-1].append(row)
        size += len(row)
    return batches
