"""Writes the results of a finished run: metrics.json, predictions, a table per gene, figures; and a table of all runs.

Not here: what the metrics are (regression.evaluate), how figures look (regression.reports.figures).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from pathray.data.plan import Plan
from pathray.device import Device
from pathray.errors import UserError
from pathray.run import layout
from pathray.stats.correlation import CorrelationIntervals, Method
from pathray.store.metrics_log import MetricsLog
from pathray.store.records import SEAL, add_seal, check_seal
from pathray.store.storage import Storage
from regression import artifact
from regression.baseline import TITLES
from regression.config import EvalConfig, RunConfig
from regression.evaluate import Evaluation, Floats, metrics, predict, write_csv, write_parquet
from regression.plan import rows_of
from regression.recipe import RegressionRecipe
from regression.reports.figures import figures

METRICS, PREDICTIONS, PER_GENE = layout.RESULTS, "predictions.parquet", "per_gene.csv"
BASELINES = "baselines.parquet"
COMPARED = ("colour", "initial")  # baselines with a column in the table of runs
SHOWN = ("best", "last", "test")  # of a run's metrics, each with both correlations
COLUMNS = (
    "run",
    *(f"{method}, {of}" for of in SHOWN for method in ("spearman", "pearson")),
    *(f"{TITLES[name]}, spearman, test" for name in COMPARED),
    "undefined genes",
    "images",
    "ended",
)


def recipe_of(trained: artifact.Trained) -> RegressionRecipe:
    """A recipe for `predict` from an exported model."""
    return RegressionRecipe(RunConfig(), trained.normaliser, trained.net, trained.preprocessing)


def write_results(
    folder: str, plan: Plan, config: RunConfig, end: str, device: Device, baselines: Mapping[str, Floats]
) -> dict[str, Any]:
    """Evaluate the exported model of the run in `folder` on its val and test rows; metrics.json is written last.
    `baselines` are predictions `[N, K]` of all rows by the models to compare with, in the targets' units.

    metrics.json: run_name, how it ended, `best` (val metrics of the exported state), `last` (those of the last
    validation of the training), `test`, `best_primary` (on val, which ranks the runs), the number of genes without a
    correlation, and intervals over groups if there are two or more; `baselines` has the same for each baseline.
    """
    store = Storage.of(folder)
    trained = artifact.load(store.join(layout.ENCODER))
    seen = trained.description["provenance"].get("images_seen")
    found: dict[str, Any] = {"run_name": folder.rpartition("/")[2], "end": end, "images_seen": seen}
    parts = [part for part in ("val", "test") if rows_of(plan, part).size >= 2]
    judged = judge(store, recipe_of(trained), plan, parts, config.eval, config.seed, device)
    found |= {"best" if part == "val" else part: own for part, own in judged.items()}
    if last := last_validation(store):
        found["last"] = last
    if baselines and parts:
        found["baselines"] = judge_baselines(store, plan, parts, config.eval, config.seed, baselines)
    found |= {"primary": config.eval.primary, "best_primary": found.get("best", {}).get(config.eval.primary)}
    found["n_undefined"] = (found.get("best") or found.get("test") or {}).get("n_undefined")
    store.write_bytes(METRICS, metrics_text(found))
    return found


def last_validation(store: Storage) -> dict[str, Any]:
    """Metrics of the last validation in a run's metrics.jsonl, with its `images_seen`; empty without one."""
    for row in reversed(MetricsLog(store.join(layout.METRICS)).read()):
        if found := {key.removeprefix("val/"): value for key, value in row.items() if key.startswith("val/")}:
            return {**found, "images_seen": row["images_seen"]}
    return {}


def judge(
    store: Storage,
    recipe: RegressionRecipe,
    plan: Plan,
    parts: Sequence[str],
    config: EvalConfig,
    seed: int,
    device: Device,
) -> dict[str, dict[str, Any]]:
    """Metrics of each part of the rows. Writes into `store`: every prediction and a row per gene, with a column
    `part`, and figures."""
    recipe.modules.to(device.torch_device)
    found: dict[str, dict[str, Any]] = {}
    predictions, genes = [], []
    for part in parts:
        rows = rows_of(plan, part)
        judged = Evaluation.of(plan, rows, predict(recipe, plan, rows, device, config.batch_size))
        intervals = judged.both_intervals(config, seed)
        found[part] = _with_intervals(judged, config, intervals)
        per_gene = judged.per_gene(intervals)
        predictions.append(_label_part(judged.predictions(), part))
        genes.append(_label_part(per_gene, part))
        for name, picture in figures(judged, per_gene, part, config.primary):  # type: ignore[arg-type]
            store.write_bytes(f"figures/{name}", picture)
    if parts:
        write_parquet(store.join(PREDICTIONS), pa.concat_tables(predictions))
        write_csv(store.join(PER_GENE), pa.concat_tables(genes, promote_options="permissive"))
    return found


def judge_baselines(
    store: Storage,
    plan: Plan,
    parts: Sequence[str],
    config: EvalConfig,
    seed: int,
    baselines: Mapping[str, Floats],
) -> dict[str, dict[str, Any]]:
    """Metrics of each baseline on each part of the rows. Writes the predictions into `store`."""
    found: dict[str, dict[str, Any]] = {name: {} for name in baselines}
    tables = []
    for part in parts:
        rows = rows_of(plan, part)
        columns: dict[str, Any] = {}
        for name, of_all in baselines.items():
            judged = Evaluation.of(plan, rows, of_all[rows])
            found[name]["best" if part == "val" else part] = _with_intervals(
                judged, config, judged.both_intervals(config, seed)
            )
            columns |= {f"{name}_{gene}": judged.predicted[:, k] for k, gene in enumerate(judged.genes)}
        first = {"part": [part] * rows.size, "path": judged.names, "group_id": judged.groups}
        tables.append(pa.table(first | columns))
    write_parquet(store.join(BASELINES), pa.concat_tables(tables))
    return found


def _with_intervals(
    judged: Evaluation, config: EvalConfig, intervals: Mapping[Method, CorrelationIntervals | None]
) -> dict[str, Any]:
    found: dict[str, Any] = dict(metrics(judged.predicted, judged.measured, config))
    for method, between in intervals.items():
        if between is not None:
            found |= {f"{method}_low": between.mean.low, f"{method}_high": between.mean.high}
    return found


def _label_part(table: pa.Table, part: str) -> pa.Table:
    return table.add_column(0, "part", [[part] * table.num_rows])


def metrics_text(found: Mapping[str, Any]) -> bytes:
    """The content of metrics.json, with its own digest."""
    return json.dumps(add_seal(json.loads(json.dumps(found))), indent=1, sort_keys=True).encode()


def read_results(store: Storage) -> list[dict[str, Any]]:
    """metrics.json of every finished run below a folder, with its path as the name; those of evaluations, which have a
    `part`, are skipped. UserError naming a damaged one."""
    found = []
    for path in store.files():
        if path.rpartition("/")[2] != METRICS:
            continue
        try:
            row = json.loads(store.read_bytes(path))
            check_seal(row, store.join(path), METRICS)
            row.pop(SEAL, None)
            if "part" in row:
                continue
            row["run_name"] = path.rpartition("/")[0] or row["run_name"]  # the folds of two runs have the same names
            results_table([row])  # a damaged file without figures fails here, with its name
        except (ValueError, LookupError, TypeError, AttributeError) as e:  # also the UserError of the seal
            expected = f"{METRICS} as a run wrote it; remove the file and run the same command to write it again"
            raise UserError(f"not the metrics of a run: {e!r}", file=store.join(path), expected=expected) from e
        found.append(row)
    return found


def results_table(runs: Sequence[Mapping[str, Any]]) -> str:
    """One Markdown row per run, sorted by the primary validation metric, best first; runs without one are last."""

    def rank(run: Mapping[str, Any]) -> tuple[bool, float]:
        value = run.get("best_primary")
        return value is None, -(value or 0.0)

    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + " --- |" * len(COLUMNS)]
    for run in sorted(runs, key=rank):
        cells = [_figure(run.get(of) or {}, method) for of in SHOWN for method in ("spearman", "pearson")]
        beside = run.get("baselines") or {}
        cells += [_figure((beside.get(name) or {}).get("test") or {}, "spearman") for name in COMPARED]
        undefined = run.get("n_undefined")
        cells += [
            "" if undefined is None else f"{undefined:.0f}",
            f"{run.get('images_seen') or 0:,}",
            str(run.get("end")),
        ]
        lines.append(f"| {run['run_name']} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _figure(found: Mapping[str, Any], name: str) -> str:
    """``0.412 [0.38, 0.44]``; empty if not measured."""
    if found.get(name) is None:
        return ""
    ends = f" [{found[f'{name}_low']:.3f}, {found[f'{name}_high']:.3f}]" if f"{name}_low" in found else ""
    return f"{found[name]:.4f}{ends}"
