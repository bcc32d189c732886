"""Writes a comparison: its JSON, and next to it the forest plot and a page. Not here: the numbers (.comparison)."""

from __future__ import annotations

import json
import posixpath
from base64 import b64encode
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mil.analysis.comparing.forest import ALPHA, MOST_PAIRS, SHOWN, draw_forest
from mil.judging.page import Table, in_words, name_of
from pathray.reports.page import PagePicture, render_page
from pathray.store.storage import Storage
from pathray.urls import public_text

JSON = "significance.json"
TEMPLATES = Path(__file__).parents[1] / "templates"
Json = dict[str, Any]


def write_comparison(compared: Json, output: str) -> dict[str, object]:
    """Write `output`, a file `.json` or a folder, with the same name as .png and .html; returns the files. The JSON
    comes last: where it is, the others are of the same comparison."""
    folder, name = split_output(output)
    store, stem = Storage.of(folder), name.removesuffix(".json")
    picture = draw_forest(compared)
    store.write_bytes(f"{stem}.png", picture)
    store.write_bytes(f"{stem}.html", comparison_page(compared, picture).encode())
    text = json.dumps(compared, indent=1, sort_keys=True, allow_nan=False)
    store.write_bytes(name, text.encode() + b"\n")
    return {"significance": store.join(name), "report": store.join(f"{stem}.html"), "plot": store.join(f"{stem}.png")}


def split_output(output: str) -> tuple[str, str]:
    """Folder and name of the JSON."""
    if not output.endswith(".json"):
        return output, JSON
    folder, name = posixpath.split(output)
    return folder or ".", name


def comparison_page(compared: Json, picture: bytes) -> str:
    """The page, in the style of a judged model's."""
    several = any(model["seeds"] > 1 for model in compared["models"].values())
    values = {
        "title": public_text("Comparison of " + ", ".join(compared["models"])),
        "lead": f"{compared['slides']:,} slides of {compared['patients']:,} patients, the same for all models. "
        f"Intervals are {compared['level']:.0%} over patients{' and seeds' if several else ''}.",
        "verdicts": [verdict(pair, compared["models"]) for pair in compared["pairs"]],
        "facts": _facts(compared),
        "methods": [(name.replace("_", ", "), words) for name, words in compared["methods"].items()],
        "picture": _picture(picture, compared),
        "tables": [_models(compared), *(_pair(pair, compared) for pair in compared["pairs"])],
    }
    return render_page("comparison.html.j2", values, TEMPLATES)


def verdict(pair: Json, models: Json) -> str:
    """A sentence about the first score that `SHOWN` names, such as the AUROC."""
    name = next(name for name in SHOWN if name in pair["scores"])
    score, words = pair["scores"][name], f"{pair['a']} and {pair['b']}: {name_of(name)}"
    found = score["difference"]
    if found["value"] is None or score["p_holm"] is None:
        return f"{words} cannot be compared: {found['reason']}."
    clear = score["p_holm"] < ALPHA
    better = pair["a"] if (found["value"] > 0) != score["lower_is_better"] else pair["b"]
    told = f"is better for {better}" if clear else "shows no clear difference"
    single = [key for key in ("a", "b") if models[pair[key]]["seeds"] == 1]
    seeds = f"; of {' and '.join(pair[key] for key in single)} one seed only: its chance is not in the interval"
    seeds = seeds if single else ""
    return f"{words} {told}: {in_words(found)}, p {p_in_words(score['p_holm'])} after Holm's correction{seeds}."


def _facts(compared: Json) -> list[tuple[str, str]]:
    out = []
    for name, model in compared["models"].items():
        files = ", ".join(public_text(file) for file in model["files"])
        seeds = f"{model['seeds']} seeds: " if model["seeds"] > 1 else ""
        less = f"; {model['left_out']} slides left out, which another model lacks" if model["left_out"] else ""
        out.append((name, f"{seeds}{files}{less}"))
    if compared["positive_class"]:
        out.append(("positive class", compared["positive_class"]))
    return out


def _picture(data: bytes, compared: Json) -> PagePicture:
    more = len(compared["pairs"]) - MOST_PAIRS
    caption = "Differences with intervals. Filled points differ from 0 after Holm's correction for the pairs."
    if more > 0:
        caption += f" The first {MOST_PAIRS} pairs; {more} more are in the tables."
    return PagePicture("data:image/png;base64," + b64encode(data).decode(), "differences between models", caption)


def _models(compared: Json) -> Table:
    models = compared["models"]
    names = [name for name in SHOWN if name in next(iter(models.values()))["scores"]]
    rows = [(name_of(name), *(_with_spread(model["scores"][name]) for model in models.values())) for name in names]
    return Table("Scores", "", ("score", *models), rows)


def _with_spread(score: Json) -> str:
    seeds = score.get("over_seeds", {})
    return in_words(score) + (f"; seeds {seeds['min']:.3f} to {seeds['max']:.3f}" if "min" in seeds else "")


def _pair(pair: Json, compared: Json) -> Table:
    rows = [
        (f"AUROC of {name}, DeLong", in_words(test["difference"]), *_p_values(test))
        for name, test in pair["delong"].items()
    ]
    for key, title in (("mcnemar", "decisions, McNemar"), ("mcnemar_patients", "decisions, McNemar over patients")):
        test = pair[key]
        found = f"{test['only_a']} right in the first only, {test['only_b']} in the second" if "only_a" in test else ""
        rows.append((title, found or test["reason"], *_p_values(test)))
    rows += [
        (name_of(name), in_words(score["difference"]), *_p_values(score))
        for name, score in pair["scores"].items()
        if name in SHOWN
    ]
    lead = f"Differences {pair['a']} − {pair['b']}; p-values also corrected for {len(compared['pairs'])} pairs."
    return Table(f"{pair['a']} and {pair['b']}", lead, ("", "difference", "p", "p, Holm", "p, BH"), rows)


def _p_values(test: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(p_in_words(test[key]) for key in ("p_value", "p_holm", "p_bh"))


def p_in_words(p: float | None) -> str:
    """
    >>> p_in_words(0.00003), p_in_words(0.5), p_in_words(None)
    ('< 0.001', '0.500', '–')
    """
    return "–" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"
