"""What a finished run leaves for comparisons: metrics.json, predictions, a table per gene; and the table over runs.

Not here: figures, and what the metrics are (regression.evaluate).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from core.device import Device
from core.errors import UserError
from core.plan import Plan
from core.storage import Storage
from regression import artifact
from regression.config import EvalConfig, RunConfig
from regression.evaluate import Evaluation, metrics, predict, write_csv, write_parquet
from regression.plan import rows_of
from regression.recipe import RegressionRecipe

METRICS = "metrics.json"
COLUMNS = (
    "run",
    "spearman, val",
    "pearson, val",
    "spearman, test",
    "pearson, test",
    "undefined genes",
    "images",
    "ended",
)


def recipe_of(trained: artifact.Trained) -> RegressionRecipe:
    """An exported model as what `predict` takes."""
    return RegressionRecipe(RunConfig(), trained.normaliser, trained.net, trained.preprocessing)


def write_results(folder: str, plan: Plan, config: RunConfig, end: str) -> dict[str, Any]:
    """Evaluate the exported model of the run in `folder` on its val and test rows; metrics.json comes last.

    metrics.json: run_name, how it ended, `best` (val metrics of the exported state), `test`, `best_primary`, the number
    of genes without a correlation, and intervals over groups where there are two or more.
    """
    store = Storage.of(folder)
    trained = artifact.load(store.join("encoder"))
    recipe = recipe_of(trained)
    seen = trained.description["provenance"].get("images_seen")
    found: dict[str, Any] = {"run_name": folder.rpartition("/")[2], "end": end, "images_seen": seen}
    for key, part in (("best", "val"), ("test", "test")):
        if rows_of(plan, part).size >= 2:
            found[key] = judged_part(store, recipe, plan, part, config.eval, config.seed, Device.of("cpu"))
    best = found.get("best") or found.get("test") or {}
    found |= {"primary": config.eval.primary, "best_primary": best.get(config.eval.primary)}
    found["n_undefined"] = best.get("n_undefined")
    store.write_bytes(METRICS, json.dumps(found, indent=1, sort_keys=True).encode())
    return found


def judged_part(
    store: Storage, recipe: RegressionRecipe, plan: Plan, part: str, config: EvalConfig, seed: int, device: Device
) -> dict[str, Any]:
    """Metrics of one part of the rows; its predictions and its table per gene are written into `store`."""
    recipe.modules.to(device.torch_device)
    rows = rows_of(plan, part)
    judged = Evaluation.of(plan, rows, predict(recipe, plan, rows, device, config.batch_size))
    found: dict[str, Any] = metrics(judged.predicted, judged.measured, config)
    interval = judged.intervals(config.primary, config, seed)  # type: ignore[arg-type]
    if interval is not None:
        found |= {f"{config.primary}_low": interval.mean.low, f"{config.primary}_high": interval.mean.high}
    write_parquet(store.join(f"predictions_{part}.parquet"), judged.predictions())
    write_csv(store.join(f"per_gene_{part}.csv"), judged.per_gene(config, seed))
    return found


def read_results(store: Storage) -> list[dict[str, Any]]:
    """metrics.json of every finished run below a folder. UserError naming one that is damaged."""
    found = []
    for path in store.files():
        if path.rpartition("/")[2] != METRICS:
            continue
        try:
            row = json.loads(store.read_bytes(path))
            row["run_name"]
        except (json.JSONDecodeError, KeyError, TypeError) as e:
            raise UserError(f"not the metrics of a run: {e!r}", file=store.join(path)) from e
        found.append(row)
    return found


def results_table(runs: Sequence[Mapping[str, Any]]) -> str:
    """One Markdown row per run, the best primary validation metric first; runs without one come last."""

    def rank(run: Mapping[str, Any]) -> tuple[bool, float]:
        value = run.get("best_primary")
        return value is None, -(value or 0.0)

    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + " --- |" * len(COLUMNS)]
    for run in sorted(runs, key=rank):
        best, test = run.get("best") or {}, run.get("test") or {}
        cells = [
            _figure(best, "spearman"),
            _figure(best, "pearson"),
            _figure(test, "spearman"),
            _figure(test, "pearson"),
        ]
        undefined = run.get("n_undefined")
        cells += [
            "" if undefined is None else f"{undefined:.0f}",
            f"{run.get('images_seen') or 0:,}",
            str(run.get("end")),
        ]
        lines.append(f"| {run['run_name']} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _figure(found: Mapping[str, Any], name: str) -> str:
    """``0.412 [0.38, 0.44]``; empty where it was not measured."""
    if name not in found:
        return ""
    ends = f" [{found[f'{name}_low']:.3f}, {found[f'{name}_high']:.3f}]" if f"{name}_low" in found else ""
    return f"{found[name]:.4f}{ends}"
