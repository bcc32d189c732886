"""Adjusts the p-values of all pairs of models for the number of pairs, each test and score by itself.

Not here: the procedures (pathray.stats.comparing.multiplicity).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from pathray.stats.comparing.multiplicity import benjamini_hochberg, holm

Json = dict[str, Any]


def correct(pairs: Sequence[Json]) -> None:
    """Add `p_holm` and `p_bh` next to each `p_value` of the pairs."""
    families: dict[tuple[str, ...], list[Json]] = {}
    for pair in pairs:
        for key, test in tests_of(pair):
            families.setdefault(key, []).append(test)
    for tests in families.values():
        p_values = [test["p_value"] for test in tests]
        for test, strict, mild in zip(tests, holm(p_values), benjamini_hochberg(p_values), strict=True):
            test["p_holm"], test["p_bh"] = strict, mild


def tests_of(pair: Json) -> Iterator[tuple[tuple[str, ...], Json]]:
    """Everything in a pair that has a p-value, by its place."""
    yield from ((("delong", name), test) for name, test in pair["delong"].items())
    yield from (((name,), pair[name]) for name in ("mcnemar", "mcnemar_patients"))
    yield from ((("scores", name), test) for name, test in pair["scores"].items())
