"""What W&B has kept of offline runs below a folder."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class OfflineRun:
    """One offline run: its id, project, name and tags, the config, the rows by step, the summary, the artifacts."""

    run_id: str = ""
    project: str = ""
    name: str = ""
    tags: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    artifacts: dict[str, list[str]] = field(default_factory=dict)
    exit_code: int | None = None


def offline_runs(folder: Path) -> list[OfflineRun]:
    """In the order in which they began."""
    return [_read(file) for file in sorted(folder.glob("wandb/offline-run-*/run-*.wandb"), key=_began)]


def _began(file: Path) -> float:
    return file.parent.stat().st_ctime


def _read(file: Path) -> OfflineRun:
    from wandb.proto import wandb_internal_pb2
    from wandb.sdk.internal.datastore import DataStore

    found, store = OfflineRun(), DataStore()
    store.open_for_scan(str(file))
    while (data := store.scan_data()) is not None:
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        _add(found, record)
    return found


def _add(found: OfflineRun, record: Any) -> None:
    if record.HasField("run"):
        run = record.run
        found.run_id, found.project, found.name, found.tags = run.run_id, run.project, run.display_name, list(run.tags)
        found.config |= {item.key: json.loads(item.value_json) for item in run.config.update}
    elif record.HasField("config"):
        found.config |= {item.key: json.loads(item.value_json) for item in record.config.update}
    elif record.HasField("history"):
        values = {(item.key or "/".join(item.nested_key)): json.loads(item.value_json) for item in record.history.item}
        found.rows.append(values)
    elif record.HasField("summary"):
        items = {(item.key or "/".join(item.nested_key)): item.value_json for item in record.summary.update}
        found.summary |= {key: json.loads(value) for key, value in items.items()}
    elif record.HasField("exit"):
        found.exit_code = record.exit.exit_code
    elif record.HasField("request") and record.request.HasField("log_artifact"):
        artifact = record.request.log_artifact.artifact
        found.artifacts[artifact.name] = sorted(entry.path for entry in artifact.manifest.contents)
    elif record.HasField("artifact"):
        found.artifacts[record.artifact.name] = sorted(entry.path for entry in record.artifact.manifest.contents)
