"""summary.md in the folder of a training: how it ended, the last figures, units that could not be read, what it left.

Short, since metrics.jsonl and config_resolved.yaml have all of it. For any science.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pathray.errors import MissingFile, UserError
from pathray.reports.summary import Picture, Summary, write_summary
from pathray.run.layout import CONFIG, EVALUATION_REPORT, EVALUATIONS, FIGURES, METRICS, QUARANTINE_REPORT, RESULTS
from pathray.store.metrics_log import MetricsLog
from pathray.store.storage import Storage
from ray_jobs.train.group_start import read_fallback

if TYPE_CHECKING:
    from pathray.run.outcome import Outcome

log = logging.getLogger(__name__)

ENDS = {
    "budget": "the budget is used up",
    "early_stopped": "stopped early by an evaluator",
    "early_stop": "validation stopped it early",
    "stopped": "interrupted; the same command resumes it",
}
SETTINGS = (
    *("data_path", "data.slide_manifest_csv", "data.anchor_catalog_manifest", "data.table", "data.split"),
    *("data.context_mpp", "data.target_mpp", "data.context_fov_um", "data.target_fov_um", "data.patch_px"),
    *("arch", "model.name", "model.backbone", "model.frozen", "scaling.workers", "seed", "data.seed"),
    *("optimization.global_batch", "global_batch", "train.global_batch"),
    *("optimization.total_images_budget", "total_images", "train.images", "optimization.lr", "lr", "train.lr"),
)
FILES = {
    "metrics": METRICS,
    "resolved config": CONFIG,
    "results": RESULTS,
    "evaluations": EVALUATIONS,
    "report of the evaluations": EVALUATION_REPORT,
    "unreadable units": QUARANTINE_REPORT,
}


def write_run_summary(run_dir: str, outcome: Outcome, files: Mapping[str, object]) -> None:
    """Write the section "Training"; `files` are the job's outputs by name."""
    store = Storage.of(run_dir)
    facts: dict[str, object] = {"ended": ENDS.get(outcome.end, outcome.end), "images seen": outcome.images_seen}
    names = _curves(store)
    for row in MetricsLog(store.join(METRICS)).read():
        facts |= {name: value for name, value in row.items() if _is_reported(name, value, names)}
    facts["unreadable units"] = outcome.unreadable
    if (alone := read_fallback(store)) is not None:
        facts["workers"] = f"1, because {alone['workers']} could not be initialised: {alone['error']}"
    left = {name: str(path) for name, path in files.items() if path and name not in ("run", "report", "robustness")}
    left |= {name: store.join(path) for name, path in FILES.items() if store.exists(path)}
    figures = [name for name in store.list(FIGURES) if name.endswith(".png")]
    summary = Summary(
        "Training",
        facts,
        _settings(store),
        failed=_unreadable(store),
        files=left,
        pictures=[Picture(store.join(FIGURES, name), name.removesuffix(".png")) for name in figures],
    )
    write_summary(store.url, summary)


def _curves(store: Storage) -> set[str]:
    """The first metric of each panel of the run's science."""
    from ray_jobs.plot_training import panels_of

    return {panel.series[0][0] for panel in panels_of(store)}


def _is_reported(name: str, value: Any, curves: set[str]) -> bool:
    reported = name in curves or name.startswith(("val/", "tune/pathorob"))
    return reported and isinstance(value, int | float) and math.isfinite(value)


def _settings(store: Storage) -> dict[str, object]:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        config = OmegaConf.create(store.read_bytes(CONFIG).decode())
    except MissingFile:
        return {}
    except (OSError, ValueError, OmegaConfBaseException, YAMLError) as e:
        log.warning("%s cannot be read: %s", store.join(CONFIG), " ".join(str(e).split())[:200])
        return {}
    except Exception:  # a summary is no reason to end with an error
        log.warning("%s cannot be read", store.join(CONFIG), exc_info=True)
        return {}
    found = {key: OmegaConf.select(config, key) for key in SETTINGS}
    return {key: value for key, value in found.items() if value is not None}


def _unreadable(store: Storage) -> list[tuple[str, str]]:
    """The units that could not be read, by slide or archive, and why."""
    from pathray.store.sealed_parquet import of_bytes

    name = QUARANTINE_REPORT
    try:
        table = of_bytes(store.read_bytes(name), store.join(name), "quarantine report")
    except MissingFile:
        return []
    except UserError as e:
        log.warning("%s", e)
        return []
    rows = table.select(["source_name", "path", "reason", "detail", "benign"]).to_pylist()
    named = [(row["source_name"] or row["path"] or "", f"{row['reason']}: {row['detail']}", row) for row in rows]
    return [(name, why) for name, why, row in named if not row["benign"]]
