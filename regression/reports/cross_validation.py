"""Joins the results of a cross-validation: per fold and per gene, the model next to its baselines.

The unit is the fold: a correlation is computed within the rows that a fold holds out, and intervals are over folds.
Rows of several folds are never ranked together: sections differ in depth and stain, and a model that only distinguishes
sections would look good. Not here: training (a fold is an ordinary run); figures of one run (.figures).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pathray.draw.canvas import ACCENTS, FAINT, INK, MUTED
from pathray.errors import UserError
from pathray.stats.bootstrap import Interval, t_interval
from pathray.stats.correlation import Method, correlation
from pathray.store.sealed_parquet import of_bytes
from pathray.store.storage import Storage
from regression.baseline import TITLES
from regression.reports.report import BASELINES, METRICS, PREDICTIONS

Floats = npt.NDArray[np.float64]
METHODS: tuple[Method, ...] = ("spearman", "pearson")
MODEL = "model"  # the trained one, next to the baselines' names


@dataclass(frozen=True)
class Folds:
    """Correlations `[F, K]` within each fold's test rows, 0 where undefined, per method and per model (MODEL, then the
    baselines); `held` names a fold's held-out groups, `rows` count them; `undefined` per model over folds, genes."""

    names: tuple[str, ...]
    held: tuple[str, ...]
    rows: tuple[int, ...]
    genes: tuple[str, ...]
    values: Mapping[Method, Mapping[str, Floats]]
    undefined: Mapping[str, int]

    @property
    def models(self) -> tuple[str, ...]:
        return tuple(self.values["pearson"])


def read_folds(root: Storage, names: Sequence[str]) -> tuple[Folds, pa.Table]:
    """Results of the runs `names` below `root`, and all their test predictions with a column `fold`. UserError for a
    run without test rows, or runs whose genes or baselines differ."""
    held, rows, tables = [], [], []
    found: dict[Method, dict[str, list[Floats]]] = {method: {} for method in METHODS}
    undefined: dict[str, int] = {}
    genes: tuple[str, ...] = ()
    for name in names:
        table = _test_rows(root, f"{name}/{PREDICTIONS}")
        own = tuple(c.removeprefix("measured_") for c in table.column_names if c.startswith("measured_"))
        genes = genes or own
        if own != genes:
            raise UserError(
                "the folds have other genes", file=root.join(name, PREDICTIONS), found=own[:3], expected=genes[:3]
            )
        measured = _matrix(table, "measured", genes)
        predicted = {MODEL: _matrix(table, "predicted", genes)}
        if root.exists(f"{name}/{BASELINES}"):
            beside = _test_rows(root, f"{name}/{BASELINES}")
            ends = [c.removesuffix(f"_{genes[0]}") for c in beside.column_names if c.endswith(f"_{genes[0]}")]
            kinds = [kind for kind in ends if {f"{kind}_{gene}" for gene in genes} <= set(beside.column_names)]
            predicted |= {kind: _matrix(beside, kind, genes) for kind in kinds}
        for kind, values in predicted.items():
            for method in METHODS:
                correlations = correlation(values, measured, method)
                found[method].setdefault(kind, []).append(correlations.values)
            undefined[kind] = undefined.get(kind, 0) + correlations.n_undefined
        held.append(", ".join(sorted(set(table["group_id"].to_pylist()))))
        rows.append(table.num_rows)
        tables.append(table.add_column(0, "fold", [[name] * table.num_rows]))
    for kind, each in found["pearson"].items():
        if len(each) != len(names):
            expected = f"{kind} in each of {len(names)} folds"
            raise UserError("the folds have other baselines", file=root.url, found=len(each), expected=expected)
    stacked = {method: {kind: np.stack(each) for kind, each in of.items()} for method, of in found.items()}
    folds = Folds(tuple(names), tuple(held), tuple(rows), genes, stacked, undefined)
    return folds, pa.concat_tables(tables)


def summary(folds: Folds) -> dict[str, Any]:
    """Means over genes: of each fold, over folds with an interval, and the model minus each baseline fold by fold."""
    out: dict[str, Any] = {"folds": list(folds.names), "held_out": list(folds.held), "rows": list(folds.rows)}
    out["n_undefined"] = dict(folds.undefined)
    for method in METHODS:
        means = {kind: of.mean(axis=1) for kind, of in folds.values[method].items()}
        found: dict[str, Any] = {}
        for kind, each in means.items():
            found[kind] = {"folds": each.tolist(), **_interval(each)}
            if kind != MODEL:
                found[kind]["model_less_it"] = _interval(means[MODEL] - each)
        out[method] = found
    return out


def per_gene(folds: Folds) -> pa.Table:
    """A row per gene: its correlation within the folds' test rows, mean over folds with a t interval, for the model and
    each baseline; sorted by the model's Spearman, best first."""
    columns: dict[str, Any] = {"gene": list(folds.genes)}
    for method in METHODS:
        for kind, each in folds.values[method].items():
            ends = [_interval(each[:, k]) for k in range(len(folds.genes))]
            columns |= {f"{kind}_{method}": [e["mean"] for e in ends]}
            columns |= {f"{kind}_{method}_{end}": [e[end] for e in ends] for end in ("low", "high")}
    table = pa.table(columns)
    return table.sort_by([(f"{MODEL}_spearman", "descending"), ("gene", "ascending")])


def as_markdown(folds: Folds, title: str) -> str:
    """The readable table: a row per fold, a column per model, mean Pearson and Spearman over genes."""
    names = [kind if kind == MODEL else TITLES.get(kind, f"ridge on {kind}") for kind in folds.models]
    lines = [f"# {title}", ""]
    for method in METHODS:
        means = {kind: of.mean(axis=1) for kind, of in folds.values[method].items()}
        lines += [f"{method.capitalize()} correlation within the held-out rows, mean over {len(folds.genes)} genes", ""]
        lines += ["| held out | rows | " + " | ".join(names) + " |", "| --- | ---: |" + " ---: |" * len(names)]
        for i, (held, rows) in enumerate(zip(folds.held, folds.rows, strict=True)):
            best = max(means, key=lambda kind: means[kind][i])
            cells = [f"**{v[i]:.3f}**" if kind == best else f"{v[i]:.3f}" for kind, v in means.items()]
            lines.append(f"| {held} | {rows} | " + " | ".join(cells) + " |")
        over = [_format(_interval(each)) for each in means.values()]
        lines.append("| mean over folds | | " + " | ".join(over) + " |")
        less = [""] + [_format(_interval(means[MODEL] - each), sign=True) for k, each in means.items() if k != MODEL]
        lines += ["| model minus baseline | | " + " | ".join(less) + " |", ""]
    counts = ", ".join(f"{name} {folds.undefined[kind]}" for kind, name in zip(folds.models, names, strict=True))
    lines.append("In brackets: 95% t intervals over folds. Folds share training rows, so they are slightly too narrow.")
    lines.append(f"Undefined correlations, which count as 0: {counts}.")
    return "\n".join(lines) + "\n"


def draw_folds(folds: Folds, method: Method, title: str) -> bytes:
    """A PNG: a group of bars per fold, the model next to its baselines, with every gene as a dot."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    count, kinds = len(folds.names), folds.models
    figure = Figure(figsize=(2.2 + 0.42 * count * len(kinds), 4.6), dpi=120, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    width = 0.8 / len(kinds)
    jitter = np.random.default_rng(0).uniform(-0.28, 0.28, len(folds.genes)) * width
    for i, kind in enumerate(kinds):
        each = folds.values[method][kind]
        place = np.arange(count) + (i - (len(kinds) - 1) / 2) * width
        colour = ACCENTS[i % len(ACCENTS)]
        name = "trained model" if kind == MODEL else TITLES.get(kind, f"ridge on {kind}")
        axes.bar(place, each.mean(axis=1), 0.92 * width, color=colour, alpha=0.75, label=name, zorder=2)
        for x, values in zip(place, each, strict=True):
            axes.scatter(x + jitter, values, s=3, color=INK, alpha=0.28, linewidths=0, zorder=3)
    axes.axhline(0, color=MUTED, linewidth=0.8, zorder=1)
    labels = [f"{held}\nn = {rows}" for held, rows in zip(folds.held, folds.rows, strict=True)]
    axes.set_xticks(range(count), labels, fontsize=9.5, color=INK)
    axes.set_ylabel(f"{method.capitalize()} per gene (dots), mean (bars)", fontsize=9.5, color=MUTED)
    axes.set_title(title, loc="left", fontsize=13, fontweight="bold", color=INK, pad=30)
    axes.legend(fontsize=9, frameon=False, ncols=len(kinds), loc="lower left", bbox_to_anchor=(0, 1.0), labelcolor=INK)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(FAINT)
    axes.tick_params(colors=MUTED, length=3)
    axes.grid(axis="y", color=FAINT, linewidth=0.6, alpha=0.7)
    axes.set_axisbelow(True)
    figure.tight_layout()
    out = BytesIO()
    figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()


def write_summary(root: Storage, names: Sequence[str], title: str) -> tuple[str, dict[str, float]]:
    """Write all of this into `root`, folds.json last. Returns the Markdown, and mean over folds by ``method/model``."""
    from regression.evaluate import write_csv, write_parquet

    folds, predictions = read_folds(root, names)
    text = as_markdown(folds, title)
    write_parquet(root.join(PREDICTIONS), predictions)
    write_csv(root.join("per_gene.csv"), per_gene(folds))
    for method in METHODS:
        root.write_bytes(f"figures/folds_{method}.png", draw_folds(folds, method, title))
    root.write_bytes("folds.md", text.encode())
    found = summary(folds)
    root.write_bytes("folds.json", json.dumps(found, indent=1, sort_keys=True).encode())
    return text, {f"{method}/{kind}": found[method][kind]["mean"] for method in METHODS for kind in folds.models}


def list_unfinished(root: Storage, names: Sequence[str]) -> list[str]:
    """The runs without results yet."""
    return [name for name in names if not root.exists(f"{name}/{METRICS}")]


def _interval(values: Floats) -> dict[str, float | None]:
    if values.size < 2:
        return {"mean": float(values.mean()), "low": None, "high": None}
    found: Interval = t_interval(values)
    return {"mean": found.estimate, "low": found.low, "high": found.high}


def _format(found: Mapping[str, float | None], sign: bool = False) -> str:
    form = "+.3f" if sign else ".3f"
    ends = "" if found["low"] is None else f" [{found['low']:{form}}, {found['high']:{form}}]"
    return f"{found['mean']:{form}}{ends}"


def _test_rows(root: Storage, name: str) -> pa.Table:
    table = of_bytes(root.read_bytes(name), root.join(name), "table of predictions")
    part = np.array(table["part"].to_pylist())
    if not (part == "test").any():
        raise UserError("a fold without test rows", file=root.join(name), key="part", expected="test")
    return table.filter(pa.array(part == "test"))


def _matrix(table: pa.Table, kind: str, genes: Sequence[str]) -> Floats:
    return np.stack([table[f"{kind}_{gene}"].to_numpy().astype(np.float64) for gene in genes], axis=1)
