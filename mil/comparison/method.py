"""How a comparison was made, in words for a paper's methods section.

Not here: the computation.
"""

from __future__ import annotations

from mil.comparison.joining import Joined

SEEDS = (
    "Each score is the mean over the seeds of an experiment. Intervals and p-values over patients take the seeds as "
    "they are; those over patients and seeds take both as random: Obuchowski and Rockette's analysis with seeds as "
    "readers, nested in experiments, covariances from the resamples, and Hillis's degrees of freedom."
)


def method_of(joined: Joined, resamples: int, pairs: int) -> dict[str, str]:
    """Sentences by what they are about."""
    out = {
        "scores": (
            f"Percentile intervals from {resamples:,} resamples of whole patients, the same for all experiments. "
            "p = 2·min(#{d* ≤ 0} + 1, #{d* ≥ 0} + 1)/(R + 1)."
        ),
        "correction": (
            f"p-values are adjusted over {pairs} pair{'s' * (pairs > 1)} by Holm and Benjamini-Hochberg; intervals "
            "are not. Every score and every test is a family of its own, so one score should be chosen before looking."
        ),
    }
    if any(len(one.seeds) > 1 for one in joined.experiments):
        out["seeds"] = SEEDS
    if joined.first.classes:
        out["delong"] = (
            "DeLong's test with Obuchowski's covariance over patients, of the mean AUROC of the seeds as they are; "
            "each class against the rest where there are more than two."
        )
        out["mcnemar"] = (
            "McNemar's test over slides (exact below 25 discordant slides), and over patients by exact sign flips of "
            "each patient's sum."
        )
    if joined.first.events is not None:
        out["survival"] = "Patients are the units; pairs of patients count within folds that all experiments share."
    return out
