"""Checks of a run's folder after a kill, and the results that two equal runs have in common. Kills nothing."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pathray.store.committed import COMMITTED, Committed, list_committed
from pathray.store.storage import digest_of

CHECKPOINTS, METRICS = "checkpoints", "metrics.jsonl"


def problems_in(run: Path, step: int) -> list[str]:
    """Everything that is wrong with a run's folder; `step`: images between the rows of its metrics."""
    return half_checkpoints(run) + metrics_problems(run, step) + quarantine_problems(run)


def half_checkpoints(run: Path) -> list[str]:
    """Files of committed checkpoints that are missing, cut short or changed since the commit."""
    found = list_committed(str(run / CHECKPOINTS)) if (run / CHECKPOINTS).exists() else []
    return [problem for one in found for problem in _damage(one)]


def _damage(one: Committed) -> list[str]:
    folder, problems = Path(one.path), []
    for name, entry in one.files.items():
        try:
            found = {"size": (folder / name).stat().st_size, "sha256": digest_of(folder / name)}
        except FileNotFoundError:
            found = {}
        if found != entry:
            problems.append(f"{folder.name}/{name} is committed, but not whole")
    pruned = not (folder / COMMITTED).exists()  # meanwhile, by a run that resumes
    return [] if pruned else problems


def entries(run: Path) -> set[str]:
    """Names of all checkpoints that were begun, whether they count or not."""
    return set(os.listdir(run / CHECKPOINTS)) if (run / CHECKPOINTS).exists() else set()


def uncommitted(run: Path) -> set[str]:
    """Names of checkpoints that were begun and do not count."""
    return {name for name in entries(run) if not (run / CHECKPOINTS / name / COMMITTED).exists()}


def rows_of(run: Path) -> list[dict[str, Any]]:
    """The complete rows of metrics.jsonl that steps have written. ValueError for a row that is not JSON."""
    if not (run / METRICS).exists():
        return []
    whole, _, _ = (run / METRICS).read_bytes().rpartition(b"\n")
    return [row for line in whole.splitlines() if (row := json.loads(line))["images_seen"]]


def newest_row(run: Path) -> dict[str, Any] | None:
    """The last complete row of metrics.jsonl, without reading the others."""
    try:
        with (run / METRICS).open("rb") as f:
            f.seek(max(0, f.seek(0, os.SEEK_END) - 8192))
            row = json.loads(f.read().rpartition(b"\n")[0].rpartition(b"\n")[2])
    except (OSError, ValueError):
        return None
    return dict(row)


def metrics_problems(run: Path, step: int) -> list[str]:
    """Rows that are doubled, missing, out of order or not readable, where every step of `step` images has one."""
    try:
        seen = [row["images_seen"] for row in rows_of(run)]
    except ValueError as e:
        return [f"{METRICS}: {e}"]
    for number, images in enumerate(seen, 1):
        if images != number * step:
            return [f"{METRICS}: row {number} is of {images} images, expected {number * step}"]
    return []


def quarantine_problems(run: Path) -> list[str]:
    """Parts of the quarantine report, and the report, that cannot be read."""
    problems = []
    for path in [*sorted((run / "quarantine").glob("*.parquet")), run / "quarantine.parquet"]:
        try:
            quarantined(path)
        except Exception as e:
            problems.append(f"{path.relative_to(run)}: {type(e).__name__}: {e}")
    return problems


def quarantined(path: Path) -> list[dict[str, Any]]:
    """The rows of a quarantine report; none where there is no such file."""
    import pyarrow.parquet as pq

    return pq.read_table(io.BytesIO(path.read_bytes())).to_pylist() if path.exists() else []


def result_of(run: Path) -> dict[str, Any]:
    """What a finished run and its undisturbed twin have in common, by name: digests of tensors, figures, faults."""
    result: dict[str, Any] = {}
    for one in sorted(list_committed(str(run / CHECKPOINTS)), key=lambda c: c.meta["images_seen"]):
        if "-img" in one.name:
            result[f"snapshot at {one.meta['images_seen']} images"] = digest_of_tensors(Path(one.path))
    for path in sorted(run.glob("*/weights.safetensors")):
        result[path.parent.name] = digest_of_tensors(path.parent)
    result["metrics"] = [figures(row) for row in rows_of(run)]
    result["quarantine"] = [
        {key: row[key] for key in ("position", "attempt", "row", "reason")}
        for row in quarantined(run / "quarantine.parquet")
    ]
    return result


def figures(row: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a metrics row that do not depend on time or on when the run was started."""
    return {k: v for k, v in row.items() if k in ("images_seen", "step", "lr") or k.startswith(("loss", "grad_norm"))}


def digest_of_tensors(folder: Path) -> str:
    """sha256 over the names, types, shapes and bits of all tensors below a folder."""
    import torch
    from safetensors.torch import load_file

    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.safetensors")):
        for name, tensor in sorted(load_file(path).items()):
            digest.update(f"{path.relative_to(folder)} {name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def differences(expected: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """Names of results that differ or exist on one side only."""
    return [name for name in {**expected, **found} if expected.get(name) != found.get(name)]
