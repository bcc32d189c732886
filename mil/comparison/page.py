"""The page of a comparison: what was found in words, the forest plot, scores, differences, tests, and the method.

One HTML file without scripts. Not here: the numbers (mil.comparison.comparing), the figure (mil.comparison.figure).
"""

from __future__ import annotations

from base64 import b64encode
from pathlib import Path
from typing import Any

from mil.comparison.comparing import Compared, is_lower_better
from mil.comparison.figure import p_in_words
from mil.judging.page import Table, in_words, name_of, without_interval
from pathray.reports.page import PagePicture, render_page
from pathray.urls import public_text

TEMPLATES = Path(__file__).parent / "templates"
CAPTION = (
    "Differences with their intervals: thick over patients, thin over patients and seeds. Right of zero the first of a "
    "pair is better, also for scores of which lower values are better; blue where Holm's p-value shows it."
)
Json = dict[str, Any]


def comparison_page(compared: Compared, picture: bytes, title: str) -> str:
    """The page, as HTML."""
    source = "data:image/png;base64," + b64encode(picture).decode()
    experiments = compared.experiments
    facts = [(name, f"{one['seeds']} seed{'s' * (one['seeds'] > 1)}") for name, one in experiments.items()]
    left = [(f"of {name} are not in all tables", one["left_out"]) for name, one in experiments.items()]
    values = {
        "title": public_text(title),
        "lead": f"{compared.slides:,} slides of {compared.patients:,} patients, the same for all.",
        "facts": [*facts, *((f"{p['a']} and {p['b']}", found_in_words(compared, p)) for p in compared.pairs)],
        "notes": compared.notes,
        "picture": PagePicture(source, "differences with their intervals", CAPTION),
        "tables": [_scores(compared), *_differences(compared), *_tests(compared)],
        "method": list(compared.method.items()),
        "left_out": [(why, len(names), ", ".join(names[:3])) for why, names in left if names],
    }
    return render_page("comparison.html.j2", values, TEMPLATES)


def found_in_words(compared: Compared, pair: Json) -> str:
    """What a pair's primary score says: which is better, or that no difference is shown; with interval and p."""
    one = pair["scores"][compared.primary]
    score, better = name_of(compared.primary), one["better"]
    if one["difference"]["value"] is None or one["p_value"] is None:
        return f"{score}: no test, {one['difference']['reason']}"
    seeds = one["with_seeds"]
    shown, over = (one, "patients") if seeds["difference"] is None else (seeds, "patients and seeds")
    what = f"{better} has the better {score}" if better else f"no difference in {score} is shown"
    p = "no test" if shown["p_holm"] is None else f"p {p_in_words(shown['p_holm'])}"
    return f"{what}: {_signed(shown['difference'])} over {over}, {p}"


def _scores(compared: Compared) -> Table:
    names = list(next(iter(compared.experiments.values()))["scores"])
    rows = []
    for name in names:
        told = [_with_spread(one["scores"][name]) for one in compared.experiments.values()]
        rows.append((name_of(name) + (" (lower is better)" if is_lower_better(name) else ""), *told))
    lead = "Means over seeds with intervals over patients; ± is the standard deviation from seed to seed."
    return Table("Scores", lead, ("score", *compared.experiments), rows)


def _with_spread(score: Json) -> str:
    return in_words(score) + ("" if score["std"] is None else f" ± {score['std']:.3f}")


def _differences(compared: Compared) -> list[Table]:
    head: tuple[str, ...] = ("score", "difference [over patients]", "p", "Holm", "BH")
    if several := any(one["seeds"] > 1 for one in compared.experiments.values()):
        head = (*head, "[over patients and seeds]", "p", "Holm", "BH")
    out = []
    for pair in compared.pairs:
        rows = []
        for name, one in pair["scores"].items():
            seeds = one["with_seeds"]
            wider = seeds.get("reason") if seeds["difference"] is None else _signed(seeds["difference"])
            more = (str(wider), *_p_values(seeds)) if several else ()
            rows.append((name_of(name), _signed(one["difference"]), *_p_values(one), *more))
        out.append(Table(f"{pair['a']} − {pair['b']}", "Holm and BH: adjusted over pairs.", head, rows))
    return out


def _tests(compared: Compared) -> list[Table]:
    if "delong" not in compared.pairs[0]:
        return []
    rows: list[tuple[str, ...]] = []
    for pair in compared.pairs:
        pre = f"{pair['a']} − {pair['b']}: "
        for name, test in pair["delong"].items():
            rows.append((f"{pre}DeLong, AUROC of '{name}'", _signed(test["difference"]), *_p_values(test)))
        for units, test in pair["mcnemar"].items():
            said = test.get("reason") or f"right alone: {test['only_a']} and {test['only_b']}; {test['method']}"
            rows.append((f"{pre}McNemar over {units}", said, *_p_values(test)))
    return [Table("Tests without resampling", "", ("test", "found", "p", "Holm", "BH"), rows)]


def _signed(estimate: Json) -> str:
    if estimate["value"] is None:
        return f"not defined: {estimate['reason']}"
    if estimate["low"] is None:
        return f"{estimate['value']:+.3f} ({without_interval(estimate)})"
    return f"{estimate['value']:+.3f} [{estimate['low']:+.3f}, {estimate['high']:+.3f}]"


def _p_values(test: Json) -> tuple[str, str, str]:
    one, two, three = ("–" if test[key] is None else p_in_words(test[key]) for key in ("p_value", "p_holm", "p_bh"))
    return one, two, three
