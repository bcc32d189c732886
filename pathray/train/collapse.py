"""Watches a training for collapse: the newest features of teacher, predictor and student, and the end of a run by them.

What is computed from features is in pathray.evaluation.metrics.collapse. Not here: which features a science looks at,
and what it advises.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pathray.device import Gather, keep_local
from pathray.evaluation.metrics.collapse import Newest, explained_variance, feature_std, rankme
from pathray.train.recipe import TrainingStopped
from pathray.urls import public_text

REMEMBERED = 1024  # features of each kind that the signals are computed from
KINDS = ("target", "prediction", "student")  # of features: the teacher's, the predictor's, the context encoder's


class LatestFeatures:
    """The newest features `[N, dim]` of every kind, kept on the device."""

    def __init__(self, dim: int, size: int = REMEMBERED) -> None:
        self.size = size
        self.newest = {kind: Newest(size, dim) for kind in KINDS}

    @torch.no_grad()
    def add(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Keep features `[N, dim]` of each kind. For the log, of these alone: the standard deviation of each kind, and
        the share of the targets' variance that the predictions explain, row by row. Does not wait for the device."""
        for kind, x in features.items():
            self.newest[kind].add(x)
        std = {f"{kind}_std": x.std(dim=0, correction=0).mean() for kind, x in features.items()}
        return {**std, "explained": explained_variance(features["prediction"], features["target"])}

    def on_host(self, gather: Gather = keep_local) -> dict[str, Tensor]:
        """Those kept so far, of the kinds that have two or more; waits for the device. With a `gather` of the rows of
        all ranks they are the same on every rank."""
        return {kind: newest.on_host(gather) for kind, newest in self.newest.items() if newest.seen > 1}


def collapse_signals(features: Mapping[str, Tensor]) -> dict[str, float]:
    """RankMe of every kind of features `[N, dim]`, and the targets' standard deviation per dimension."""
    out = {f"{kind}_rankme": float(rankme(x)) for kind, x in features.items()}
    if "target" in features:
        out["target_feature_std"] = float(feature_std(features["target"]))
    return out


class FeaturesCollapsed(TrainingStopped):
    """The features of a run have collapsed. `images_seen_good`: up to where the log lines before were good."""

    images_seen_good: int = 0

    def name_checkpoint(self, path: str | None) -> None:
        """Say from which checkpoint one may resume; None: there is none from before the collapse."""
        self.where["file"] = None if path is None else public_text(path)
        if path is None:
            self.message += ". There is no checkpoint from before that"
        self.args = (str(self),)


class CollapseStop(nn.Module):
    """Ends a run after `lines` log lines in a row with signals below a bound. A module, so that a resumed run
    continues to count: its buffer holds the lines in a row, and the images seen at the last good line."""

    counts: Tensor

    def __init__(self, lines: int) -> None:
        super().__init__()
        self.lines = lines
        self.register_buffer("counts", torch.zeros(2, dtype=torch.int64))

    def judge(self, low: Mapping[str, tuple[float, float]], images_seen: int) -> None:
        """Count a log line; `low` are the signals below their bounds, as name: (found, bound). The same on all ranks.

        FeaturesCollapsed when it is the last of `lines` in a row.
        """
        row, good = self.counts.tolist()
        row, good = (row + 1, good) if low else (0, images_seen)
        self.counts.copy_(torch.tensor([row, good], dtype=torch.int64))
        if row < self.lines:
            return
        found = ", ".join(f"{name} {value:.4g}" for name, (value, _) in low.items())
        error = FeaturesCollapsed(
            f"the features have collapsed: bad in {row} log lines in a row, good until {good:,} images. Begin again in "
            "a new output, from a checkpoint before that (checkpoint.resume), with a lower learning rate or a longer "
            "warm-up",
            key="collapse.stop",
            found=found,
            expected=", ".join(f"{name} of at least {bound:g}" for name, (_, bound) in low.items()),
        )
        error.images_seen_good = good
        raise error
