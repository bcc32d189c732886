"""The MLflow parent run of a sweep or a cross-validation; the runs of trials or folds are its children.

Failures of MLflow are logged and never end the sweep.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import unquote

from pathray.errors import explain
from pathray.run.layout import MLFLOW_RUN
from pathray.run.tracking.mlflow import SILENT_S, client_of, default_uri, is_local, mlflow_errors, redact, within
from pathray.search.leaderboard import Entry
from pathray.search.objective import Objective
from pathray.store.storage import Storage
from pathray.urls import public

log = logging.getLogger(__name__)
PARENT = "logging.mlflow_parent"


class Parent:
    """The parent run, found again through mlflow_run.json in the sweep's folder. `run_id` is "" without MLflow."""

    def __init__(self, store: Storage, logging_config: Any) -> None:
        self.store, self.run_id, self.uri = store, "", logging_config.tracking_uri
        if not logging_config.mlflow:
            return
        if self.uri is None and not store.local:
            log.warning("MLflow is off: a sweep on remote storage needs tracking_uri; see the leaderboard instead")
            return
        self.uri = self.uri or default_uri(store)
        try:
            self.run_id = self._call_in_time(lambda: self._reopen_run() or self._new(logging_config.experiment))
        except Exception as e:  # a tracking failure must not end the sweep
            log.warning("could not create the sweep's MLflow run: %s", explain(e, *mlflow_errors()))

    def words(self) -> list[str]:
        """The `key=value` words that make a trial's run a child."""
        from pathray.search.space import word

        return [word("logging.tracking_uri", self.uri), word(PARENT, self.run_id)] if self.run_id else []

    def close(self, best: Entry | None, objective: Objective, facts: Mapping[str, Any], status: str) -> None:
        """End the run, with the best trial's values and its objective."""
        if not self.run_id:
            return
        try:
            self._call_in_time(lambda: self._log_best(best, objective, facts, status))
        except Exception as e:
            log.warning("could not log the sweep's result to MLflow: %s", explain(e, *mlflow_errors()))

    def _log_best(self, best: Entry | None, objective: Objective, facts: Mapping[str, Any], status: str) -> None:
        client = self._client()
        for key, value in redact(facts).items():
            client.set_tag(self.run_id, f"sweep.{key}", value)
        if best is not None and best.best is not None:
            known = client.get_run(self.run_id).data.params
            for key, value in redact(best.values).items():
                if known.setdefault(key, value) == value:
                    client.log_param(self.run_id, key, value)
                client.set_tag(self.run_id, f"best.{key}", value)  # a restored sweep may find a better one
            client.set_tag(self.run_id, "best.trial", best.trial)
            client.log_metric(self.run_id, objective.metric, best.best[1], step=best.best[0])
        client.set_terminated(self.run_id, status)

    def end(self, metrics: Mapping[str, float], status: str) -> None:
        """End the run of a cross-validation, with the folds' combined metrics."""
        if not self.run_id:
            return
        try:
            self._call_in_time(lambda: self._log_folds(metrics, status))
        except Exception as e:
            log.warning("could not log the folds' result to MLflow: %s", explain(e, *mlflow_errors()))

    def _log_folds(self, metrics: Mapping[str, float], status: str) -> None:
        client = self._client()
        for name, value in metrics.items():
            client.log_metric(self.run_id, name, value)
        client.set_terminated(self.run_id, status)

    def _call_in_time(self, action: Callable[[], Any]) -> Any:
        """`action()` with a time limit for servers (TimeoutError), so that a sweep does not wait for MLflow."""
        return action() if is_local(str(self.uri)) else within(SILENT_S, action)

    def _client(self) -> Any:
        return client_of(str(self.uri))

    def _reopen_run(self) -> str:
        if not self.store.exists(MLFLOW_RUN):
            return ""
        known = json.loads(self.store.read_bytes(MLFLOW_RUN))
        if unquote(known["tracking_uri"]) != unquote(public(str(self.uri))):
            return ""
        self._client().update_run(known["run_id"], status="RUNNING")
        return str(known["run_id"])

    def _new(self, name: str) -> str:
        client = self._client()
        experiment = client.get_experiment_by_name(name)
        number = experiment.experiment_id if experiment else client.create_experiment(name)
        run_id = str(client.create_run(number, run_name=self.store.url, tags={"sweep": "parent"}).info.run_id)
        self.store.write_bytes(
            MLFLOW_RUN, json.dumps({"run_id": run_id, "tracking_uri": public(str(self.uri))}).encode()
        )
        return run_id
