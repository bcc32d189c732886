"""The training recipe of I-JEPATH: one phase, its loss, the teacher's EMA, and signals of collapse.

A pathray.train.recipe.Recipe. Not here: networks and losses (ijepath.model), optimizer settings (ijepath.settings),
devices, files and Ray.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor

from ijepath.augment import Pixels
from ijepath.config import ModelConfig, RunConfig
from ijepath.model import (
    build_modules,
    encode_context,
    encode_targets,
    encode_views,
    pooled_loss,
    predict,
    site_loss,
    tokens_loss,
)
from ijepath.scales import kinds
from pathray.device import Gather, keep_local
from pathray.evaluation.metrics.collapse import explained_variance
from pathray.nn.predictor import TokenPredictor
from pathray.nn.vit import ViT
from pathray.optim.ema import Ema, drift
from pathray.optim.schedules import linear
from pathray.train.collapse import KINDS, LatestFeatures, collapse_signals
from pathray.train.recipe import Loss, Progress

log = logging.getLogger(__name__)

LOW_STD, LOW_RANK, LOW_EXPLAINED = 0.02, 4.0, 0.05
SETTLED = 0.5  # of the steps, after which predictions should be better than the mean


class IJepathRecipe:
    """Context encoder, predictor and EMA teacher, trained in the one phase ``model``.

    `sites` is the number of sites for `site.adversarial`; `gather` concatenates the rows of all ranks, for
    `model.regulariser`. Built from `data.seed` alone: equal on every rank.
    """

    def __init__(self, config: RunConfig, sites: int = 0, gather: Gather = keep_local) -> None:
        self.config = config
        self.modules = build_modules(config, sites, gather)
        trained = [name for name in self.modules if name != "teacher"]
        self.params = {
            "model": [
                (f"{name}.{key}", parameter)
                for name in trained
                for key, parameter in self.modules[name].named_parameters()
                if parameter.requires_grad
            ]
        }
        self.pixels = Pixels(config.augment, config.data.mean, config.data.std)
        self.grid = kinds(config)[0].geometry.predictor_grid
        self.features = LatestFeatures(self.student.config.dim)  # pooled over tokens
        self._momentum, self._fraction = config.optimization.ema[0], 0.0

    @property
    def encoder(self) -> ViT:
        """The network that is exported: the teacher."""
        return cast(ViT, self.modules["teacher"])

    @property
    def student(self) -> ViT:
        return cast(ViT, self.modules["student"])

    @property
    def predictor(self) -> TokenPredictor:
        return cast(TokenPredictor, self.modules["predictor"])

    def phases(self, step: int) -> tuple[str, ...]:
        return ("model",)

    def prepare(self, micro: dict[str, Tensor], progress: Progress) -> dict[str, Tensor]:
        """uint8 pixels → normalised, augmented float images; everything else stays."""
        context, targets = self.pixels(micro["context"], micro["targets"], micro["draws"])
        return {**micro, "context": context, "targets": targets}

    def loss(self, phase: str, micro: dict[str, Tensor], progress: Progress) -> Loss:
        """Σ over the micro-batch of the samples' losses, weight = samples. See ijepath.model for the formulas."""
        assert phase == "model", phase
        wanted = micro["target_predict"]
        h = encode_targets(self.encoder, micro["targets"], wanted.shape[1])
        tokens = encode_context(self.student, micro["context"], micro["context_keep"])
        joint = self.config.model.predict == "joint"
        z = predict(self.predictor, tokens, micro["context_index"], wanted, self.grid, joint=joint)
        each = tokens_loss(z, h, micro["cells"]) if self.config.model.loss == "tokens" else pooled_loss(z, h)
        metrics = {"loss_jepa": each.detach().mean()}
        if "site" in self.modules:
            logits = self.modules["site"](tokens.float().mean(dim=1))
            site = site_loss(logits, micro["site"])
            metrics |= {"loss_site": site.detach().mean(), "site_accuracy": _accuracy(logits, micro["site"])}
            each = each + site
        if self.config.model.regulariser != "none":
            views = encode_views(self.student, tokens, micro["targets"], wanted.shape[1])
            term, terms = self.modules["regulariser"](views, progress.step, progress.global_batch)
            metrics |= terms
            each = each + term
        metrics |= {
            "context_keep_tokens": _constant(tokens.shape[1], each),
            "target_predict_tokens": _constant(wanted.shape[-1], each),
            **self._learning(h, z, tokens),
        }
        return Loss(each.sum(), _constant(each.shape[0], each), metrics)

    def after_step(self, progress: Progress) -> None:
        """teacher ← m · teacher + (1 − m) · student."""
        self._momentum, self._fraction = self.momentum(progress), progress.fraction
        Ema.update(self.encoder, self.student, self._momentum)

    def momentum(self, progress: Progress) -> float:
        """Linear over the steps from ema[0] at the first to ema[1] at the last."""
        first, last = self.config.optimization.ema
        return linear(progress.step, progress.total_steps, first, last)

    @torch.no_grad()
    def signals(self) -> dict[str, float]:
        """Collapse signals over the newest pooled features: RankMe of targets, predictions and context encoder, the
        targets' std per dimension, and the distance of teacher and student. Warns when they look like collapse."""
        out = {"teacher_student_drift": drift(self.encoder, self.student), "ema": self._momentum}
        features = self.features.on_host()
        out |= collapse_signals(features)
        if "target" in features:
            seen = dict(out)
            if self._fraction >= SETTLED:
                seen["explained"] = float(explained_variance(features["prediction"], features["target"]))
            for line in advice(seen, min(features["target"].shape), self.config.model):
                log.warning("%s", line)
        return out

    @torch.no_grad()
    def _learning(self, h: Tensor, z: Tensor, tokens: Tensor) -> dict[str, Tensor]:
        """Of this micro-batch, pooled over tokens: std per dimension of targets h `[B, K, G, D]`, predictions z
        `[B, K, M, D]` and context tokens `[B, C, D]`, and the share of the targets' variance that z explains."""
        pooled = (h.mean(dim=2).flatten(0, 1), z.float().mean(dim=2).flatten(0, 1), tokens.float().mean(dim=1))
        return self.features.add(dict(zip(KINDS, pooled, strict=True)))


def advice(signals: Mapping[str, float], most: int, model: ModelConfig) -> list[str]:
    """What to change when the signals of a run of this `model` look like collapse; `most` is the largest possible
    rank."""
    values = {"loss": ("pooled", "tokens"), "regulariser": ("none", "sigreg")}
    others = [f"model.{key}={better}" for key, (now, better) in values.items() if getattr(model, key) == now]
    lines, other = [], f", or set {' or '.join(others)} in a new run" if others else ""
    std, rank = signals["target_feature_std"], signals["target_rankme"]
    if signals.get("explained", 1.0) < LOW_EXPLAINED:
        lines.append(
            f"predictions explain little beyond the mean target: {signals['explained']:.2f} of the newest "
            f"targets' variance; raise optimization.lr or model.pred_depth, lower data.target_fov_um{other}"
        )
    if std < LOW_STD:
        lines.append(
            f"features collapse: target_feature_std {std:.4f} is below {LOW_STD}; lower optimization.lr, lengthen "
            f"optimization.warmup, raise the first optimization.ema{other}"
        )
    if most >= 8 * LOW_RANK and rank < LOW_RANK:
        lines.append(
            f"features span few dimensions: target_rankme {rank:.1f} is below {LOW_RANK}; raise "
            f"data.batch_size_per_gpu or data.targets_per_context, lower optimization.lr{other}"
        )
    return lines


def _accuracy(logits: Tensor, site: Tensor) -> Tensor:
    known = (site >= 0).to(torch.float32)
    right = (logits.detach().argmax(dim=1) == site).to(torch.float32)
    return (right * known).sum() / known.sum().clamp(min=1)


def _constant(value: int, like: Tensor) -> Tensor:
    return torch.full((), float(value), dtype=torch.float32, device=like.device)
