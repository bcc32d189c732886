"""The mean score of a Monte-Carlo cross-validation and its interval.

Repeats share slides, so their spread alone is too small an error. Not here: scores of one repeat.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.stats import t

from pathray.data.splits import Split


def spread_of_repeats(each: Mapping[str, Mapping[str, float | None]], splits: Mapping[str, Split]) -> dict[str, Any]:
    """Per score: mean, standard deviation over repeats, and the 95% interval with the corrected variance

        (1/J + n_test / n_train) s²,   Student's t with J − 1 degrees of freedom (Nadeau & Bengio 2003, eq. 7)

    of J repeats. None where a score is not defined in every repeat, or J < 2. `in_words`: the same for a page.
    """
    J = len(each)
    ratio = float(np.mean([one.rows("test").size / one.rows("train").size for one in splits.values()]))
    out: dict[str, Any] = {"repeats": J, "test_to_train": ratio, "scores": {}, "in_words": {}}
    for name in next(iter(each.values())):
        values = [found[name] for found in each.values()]
        if J < 2 or None in values:
            out["scores"][name] = None
            continue
        x = np.array(values, np.float64)
        mean, s = float(x.mean()), float(x.std(ddof=1))
        half = float(t.ppf(0.975, J - 1)) * s * float(np.sqrt(1 / J + ratio))
        out["scores"][name] = {"mean": mean, "std": s, "low": mean - half, "high": mean + half}
        out["in_words"][name] = f"{mean:.3f} [{mean - half:.3f}, {mean + half:.3f}]"
    return out
