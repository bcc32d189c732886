"""The diversity budget: how often a run sees each anchor, with warnings and the keys to change. Arithmetic only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pathray.errors import UserError

LOW_PASSES, HIGH_PASSES = 1.0, 5.0


@dataclass(frozen=True)
class Diversity:
    """Figures of a budget of `total_images_budget` images over `anchor_count` anchors."""

    anchor_count: int
    total_images_budget: int
    low_threshold: float = LOW_PASSES
    high_threshold: float = HIGH_PASSES

    def __post_init__(self) -> None:
        if self.anchor_count < 1:
            raise UserError(
                "there are no anchors to train on", key="anchor_count", found=self.anchor_count, expected=">= 1"
            )
        if self.total_images_budget < 1:
            key = "optimization.total_images_budget"
            raise UserError("the budget must be at least one image", key=key, found=self.total_images_budget)
        if not 0 <= self.low_threshold <= self.high_threshold:
            found = (self.low_threshold, self.high_threshold)
            key = "data.low_anchor_pass_warning_threshold"
            raise UserError("invalid thresholds of anchor passes", key=key, found=found, expected="0 <= low <= high")

    @property
    def anchor_passes_total(self) -> float:
        return self.total_images_budget / self.anchor_count

    @property
    def coverage_first_pass(self) -> float:
        return min(1.0, self.anchor_passes_total)

    @property
    def mean_anchor_reuse(self) -> float:
        return max(0.0, self.anchor_passes_total - 1.0)

    def metrics(self) -> dict[str, float]:
        """The figures for the run's log."""
        return {
            "anchor_count": float(self.anchor_count),
            "anchor_passes_total": self.anchor_passes_total,
            "coverage_first_pass": self.coverage_first_pass,
            "mean_anchor_reuse": self.mean_anchor_reuse,
        }

    def warnings(self) -> list[str]:
        """What is out of balance and which keys to change; empty between the thresholds."""
        passes = self.anchor_passes_total
        if passes < self.low_threshold:
            return [
                f"{passes:.2f} anchor passes are below {self.low_threshold:g}: the run will see "
                f"{self.coverage_first_pass:.0%} of its {self.anchor_count:,} anchors",
                "  rebalance compute: raise optimization.total_images_budget",
            ]
        if passes > self.high_threshold:
            return [
                f"{passes:.2f} anchor passes are above {self.high_threshold:g}: every anchor is reused "
                f"{self.mean_anchor_reuse:.1f} times on average",
                "  increase anchor diversity: enlarge the anchor catalog (slides, or a smaller stride)",
                "  increase within-anchor diversity: raise data.targets_per_context",
                "  rebalance compute: lower optimization.total_images_budget",
            ]
        return []

    def lines(self) -> list[str]:
        """The report at the start of a run: the figures, then the warnings."""
        figures = (
            f"diversity budget: {self.total_images_budget:,} images over {self.anchor_count:,} anchors = "
            f"{self.anchor_passes_total:.2f} passes, first-pass coverage {self.coverage_first_pass:.0%}, "
            f"mean reuse {self.mean_anchor_reuse:.2f}"
        )
        return [figures, *self.warnings()]


def stratum_passes(
    total_images_budget: int, shares: Mapping[str, float], stratum_counts: Mapping[str, int]
) -> dict[str, float]:
    """Anchor passes of each stratum, given its share of the positions. Even shares repeat a rare stratum most."""
    return {name: total_images_budget * share / stratum_counts[name] for name, share in shares.items()}
