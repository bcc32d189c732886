"""The training recipe of OCT pretraining: one phase, its loss, the teacher's EMA, and signals of collapse.

A pathray.train.recipe.Recipe. Not here: networks (oct.model), losses (oct.loss), optimizer settings (oct.settings),
devices, files and Ray.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from oct.augment import Volumes
from oct.config import RunConfig
from oct.loss import dense, dense_weights, l1, normalized_mse
from oct.masks import MaskSampler
from oct.model import build_modules, encode_context, encode_target, encode_views
from pathray.device import Gather, keep_local
from pathray.nn.vit import ViT, take
from pathray.optim.ema import Ema, drift
from pathray.optim.schedules import cosine
from pathray.train.collapse import CollapseStop, LatestFeatures, collapse_signals
from pathray.train.recipe import Loss, Micro, Progress

log = logging.getLogger(__name__)
WATCHED = 16  # tokens of a volume that the signals look at


class OctRecipe:
    """Context encoder, predictor and EMA teacher, trained in the one phase ``model``.

    `gather` concatenates the rows of all ranks, for the signals of collapse and for `model.regulariser`. Built from
    `data.seed` alone: equal on every rank. `native`: the size of volumes that the run was begun with, if it is not that
    of `config`.
    """

    def __init__(self, config: RunConfig, gather: Gather = keep_local, native: Sequence[int] = ()) -> None:
        self.config, self.gather = config, gather
        self.modules = build_modules(config, gather, native)
        trained = [name for name in self.modules if name != "teacher"]
        self.modules["collapse"] = CollapseStop(config.collapse.lines)
        self.params = {
            "model": [
                (f"{name}.{key}", parameter)
                for name in trained
                for key, parameter in self.modules[name].named_parameters()
            ]
        }
        self.masks, self.grid = MaskSampler.of(config).masks, config.tokens
        self.volumes = Volumes(config.augment, config.data.spacing_mm)
        self.features = LatestFeatures(self.student.config.dim)
        self._momentum, self._images_seen = config.optimization.ema[0], 0

    @property
    def encoder(self) -> ViT:
        """The network that is exported: the teacher."""
        return cast(ViT, self.modules["teacher"])

    @property
    def student(self) -> ViT:
        return cast(ViT, self.modules["student"])

    @property
    def stop(self) -> CollapseStop:
        return cast(CollapseStop, self.modules["collapse"])

    def phases(self, step: int) -> tuple[str, ...]:
        return ("model",)

    def prepare(self, micro: Micro, progress: Progress) -> Micro:
        """int16 volumes → normalised, augmented `image` `[B, 1, D, H, W]`; token numbers as int64."""
        return self._place(micro, micro["draws"])

    def loss(self, phase: str, micro: Micro, progress: Progress) -> Loss:
        """Σ over the micro-batch of the volumes' losses, weight = volumes. See oct.loss for the formulas."""
        assert phase == "model", phase
        h = encode_target(self.encoder, micro["image"])
        parts, contexts, watched = [], [], []
        for i in range(self.masks):
            tokens = encode_context(self.student, micro["image"], micro[f"context_{i}"])
            each, z = self._compare(tokens, h, micro[f"context_{i}"], micro[f"target_{i}"])
            parts.append(each)
            contexts.append(tokens)
            watched.append((take(h, micro[f"target_{i}"]), z, tokens))
        each = torch.stack(parts).mean(dim=0)
        metrics = {"loss_jepa": each.detach().mean()}
        if self.config.model.regulariser != "none":
            views = encode_views(self.student, micro["image"], contexts, micro["target_0"])
            term, terms = self.modules["regulariser"](views, progress.step, progress.global_batch)
            metrics |= terms
            each = each + term
        metrics |= self._learning(*watched[0])
        weight = torch.full((), float(each.shape[0]), dtype=torch.float32, device=each.device)
        return Loss(each.sum(), weight, metrics)

    def after_step(self, progress: Progress) -> None:
        """teacher ← m · teacher + (1 − m) · student, at every step of the optimizer."""
        self._momentum = self.momentum(progress)
        self._images_seen = progress.images_seen + progress.global_batch
        Ema.update(self.encoder, self.student, self._momentum)

    def momentum(self, progress: Progress) -> float:
        """Half a cosine over the steps from ema[0] at the first to ema[1] at the last."""
        first, last = self.config.optimization.ema
        return cosine(progress.step, progress.total_steps, first, last)

    @torch.no_grad()
    def signals(self) -> dict[str, float]:
        """Collapse signals over the newest tokens of all ranks: RankMe of targets, predictions and context encoder, the
        targets' std per dimension, and the distance of teacher and student.

        TrainingStopped, on all ranks, when targets were below the bounds of `collapse` for too many log lines.
        """
        out = {"teacher_student_drift": drift(self.encoder, self.student), "ema": self._momentum}
        features = self.features.on_host(self.gather)
        out |= collapse_signals(features)
        if "target" in features:
            self._judge(out, min(features["target"].shape))
        return out

    @torch.no_grad()
    def validation_losses(self, micro: Micro) -> Tensor:
        """`[B]`: the loss of volumes without augmentation, whose masks come with them, without a regulariser.

        The modules must be in evaluation mode. Micro: placed on the device, as the reader gives it.
        """
        placed = self._place(micro, None)
        h = encode_target(self.encoder, placed["image"])
        parts = []
        for i in range(self.masks):
            context, target = placed[f"context_{i}"], placed[f"target_{i}"]
            assert target.shape[1] > 0, "a mask that hides nothing: the loss would be 0"
            tokens = encode_context(self.student, placed["image"], context)
            parts.append(self._compare(tokens, h, context, target)[0])
        return torch.stack(parts).mean(dim=0)

    def _place(self, micro: Micro, draws: Tensor | None) -> Micro:
        index = {name: value.long() for name, value in micro.items() if name.startswith(("context_", "target_"))}
        return {**micro, **index, "image": self.volumes(micro["image"], micro["inside"], draws)}

    def _compare(self, tokens: Tensor, h: Tensor, context: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of a mask `[B]`, and its predictions of the hidden tokens `[B, M, D]`, for context tokens
        `[B, K, D]`, teacher tokens `[B, N, D]`, and the token numbers `[B, K]` and `[B, M]`."""
        kind, predictor, places = self.config.model.loss, self.modules["predictor"], (context, target, self.grid)
        if kind == "dense":
            z = predictor(tokens, *places, visible_too=True)
            weights = dense_weights(context, target, self.grid, self.config.model.dense_weight)
            return dense(z, take(h, torch.cat([context, target], dim=1)), weights), z[:, -target.shape[1] :]
        z = predictor(tokens, *places)
        return (l1 if kind == "l1" else normalized_mse)(z, take(h, target)), z

    @torch.no_grad()
    def _learning(self, h: Tensor, z: Tensor, tokens: Tensor) -> dict[str, Tensor]:
        """The log's figures of evenly spaced tokens of a micro-batch: targets h `[B, M, D]`, predictions z `[B, M, D]`
        and context tokens `[B, K, D]`."""
        some = {"target": h, "prediction": z.float(), "student": tokens.float()}
        features = {kind: x[:, :: -(-x.shape[1] // WATCHED)].flatten(0, 1) for kind, x in some.items()}
        if self.config.model.loss == "normalized_mse":  # only directions are compared: give them the targets' length
            features["prediction"] = F.normalize(features["prediction"], dim=1) * h.shape[-1] ** 0.5
        return self.features.add(features)

    def _judge(self, signals: dict[str, float], most: int) -> None:
        """Count this log line as good or bad; `most` is the largest possible rank."""
        bounds = self.config.collapse
        low = {}
        if signals["target_feature_std"] < bounds.min_std:
            low["target_feature_std"] = (signals["target_feature_std"], bounds.min_std)
        if most >= 2 * bounds.min_rank and signals["target_rankme"] < bounds.min_rank:
            low["target_rankme"] = (signals["target_rankme"], bounds.min_rank)
        if low:
            found = ", ".join(f"{name} {value:.4g} < {bound:g}" for name, (value, bound) in low.items())
            log.warning("the features look collapsed: %s; lower optimization.lr or lengthen optimization.warmup", found)
        if bounds.stop:
            self.stop.judge(low, self._images_seen)
