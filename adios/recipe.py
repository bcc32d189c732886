"""The training recipe of ADIOS: the student's phase, the mask model's phase after it, and signals of collapse.

A pathray.train.recipe.Recipe. The student learns to match a view and its other view with parts masked; the mask model,
with the student frozen, learns to mask what makes that hardest. Not here: formulas (adios.loss), networks
(adios.student, adios.mask_models), optimizer settings (adios.settings), devices, files and Ray.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from adios.artifact import config_in
from adios.augment import OF_CROP, OF_VIEW, VIEWS, crop_place, crops, view
from adios.config import RunConfig, warmup_steps
from adios.loss import contrast, mask_statistics, penalty
from adios.mask_models import MaskModel, build_mask_model
from adios.student import Student, build_student
from pathray.config.load import fingerprint
from pathray.device import Gather, keep_local, scalar
from pathray.evaluation.metrics.collapse import Newest, explained_variance, feature_std, rankme
from pathray.nn.stain import constant
from pathray.optim.schedules import cosine
from pathray.train.global_batch import check_whole_batch
from pathray.train.recipe import Loss, Progress

log = logging.getLogger(__name__)

STUDENT, MASK = "student", "mask"  # the phases
REMEMBERED = 1024  # class tokens of each kind that the collapse signals are computed from
KINDS = ("feature", "masked")  # class tokens of whole views, and of masked ones
LOW_STD, LOW_RANK = 0.02, 4.0


class AdiosRecipe:
    """Built from the config's seed alone: equal on every rank. `gather` concatenates the `[B, …]` of all ranks in rank
    order, with a backward pass that sums (`Device.gather_sum_grad`); `rank` is this process."""

    def __init__(self, config: RunConfig, gather: Gather = keep_local, rank: int = 0) -> None:
        self.config, self.gather, self.rank = config, gather, rank
        mask_model = build_mask_model(config_in(fingerprint(config)["values"]), config.seed + 1)
        self.modules = nn.ModuleDict({"student": build_student(config), "mask_model": mask_model})
        self.params = {
            STUDENT: list(self.student.named_parameters(prefix="student")),
            MASK: list(self.mask_model.named_parameters(prefix="mask_model")),
        }
        self._newest = {kind: Newest(REMEMBERED, self.student.vit.config.dim) for kind in KINDS}
        self._warm = False

    @property
    def student(self) -> Student:
        return cast(Student, self.modules["student"])

    @property
    def mask_model(self) -> MaskModel:
        return cast(MaskModel, self.modules["mask_model"])

    def phases(self, step: int) -> tuple[str, ...]:
        """The student at every step, then the mask model at every `mask_update_freq`-th step."""
        return (STUDENT, MASK) if (step + 1) % self.config.mask_update_freq == 0 else (STUDENT,)

    def prepare(self, micro: dict[str, Tensor], progress: Progress) -> dict[str, Tensor]:
        """uint8 patches -> two views `a`, `b` `[B, 3, S, S]`, normalised; where the crops lie, `[B, N·K, 2, 3]`."""
        config, draws = self.config, micro["draws"]
        pixels = micro["image"].movedim(-1, 1).to(torch.float32) / 255.0
        a, *other = (
            self._normalise(view(pixels, draws[:, i * OF_VIEW : (i + 1) * OF_VIEW], config.views))
            for i in range(1 if config.single_view else VIEWS)
        )
        b = other[0] if other else a
        count = config.num_masks * config.crops_per_mask
        places = draws[:, VIEWS * OF_VIEW :][:, : count * OF_CROP].reshape(-1, OF_CROP)
        return {"a": a, "b": b, "crops": crop_place(places, config.crops).reshape(len(draws), count, 2, 3)}

    def loss(self, phase: str, micro: dict[str, Tensor], progress: Progress) -> Loss:
        """Σ over the micro-batch of the images' losses, weight = images.

        UserError if the micro-batches of all ranks are not the whole global batch: an image would have other negatives,
        which is another loss.
        """
        self._train_only(phase)
        self._warm = progress.step > warmup_steps(self.config)
        each, metrics = (self._student_loss if phase == STUDENT else self._mask_loss)(micro, progress)
        weight = torch.full((), float(len(each)), dtype=torch.float32, device=each.device)
        return Loss(each.sum(), weight, metrics)

    def after_step(self, progress: Progress) -> None:
        return None

    def temperature(self, progress: Progress) -> float:
        """Half a cosine from `initial_temp` at the first step to `final_temp` at the last."""
        return cosine(progress.step, progress.total_steps, self.config.initial_temp, self.config.final_temp)

    @torch.no_grad()
    def signals(self) -> dict[str, float]:
        """Collapse signals over the newest views: per-dimension std and RankMe of class tokens, of whole views and of
        masked ones. Warns when those of whole views look like collapse after the warm-up; before it the features of all
        images are alike."""
        features = {kind: newest.on_host() for kind, newest in self._newest.items() if newest.seen > 1}
        out = {f"{kind}_std": float(feature_std(x)) for kind, x in features.items()}
        out |= {f"{kind}_rankme": float(rankme(x)) for kind, x in features.items()}
        for line in advice(out, min(features["feature"].shape)) if features and self._warm else ():
            log.warning("%s", line)
        return out

    def _student_loss(self, micro: dict[str, Tensor], progress: Progress) -> tuple[Tensor, dict[str, Tensor]]:
        """Σ_k L_k over N masked views and N·K crops of them, `[B]`; the masks are given."""
        config, a, b = self.config, micro["a"], micro["b"]
        with torch.no_grad():
            masks = self.mask_model.masks(b)
        seen = apply_masks(b, masks)
        batches = [torch.cat([a[None], seen]).flatten(0, 1)]
        if config.crops_per_mask:
            batches.append(self._crops(seen, micro["crops"]))
        tokens = self.student.tokens(batches)
        self._newest["feature"].add(tokens[0].cls[: len(a)])
        self._newest["masked"].add(tokens[0].cls[len(a) :])
        z = self.student.embed(torch.cat([t.cls for t in tokens])).unflatten(0, (-1, len(a)))
        temperature = scalar(self.temperature(progress), a.device)
        each = self._contrasts(z[0], z[1:], temperature, progress)
        whole = each.detach()[: config.num_masks].sum(dim=0).mean()
        masked = z[1 : 1 + config.num_masks]
        explained = explained_variance(masked.flatten(0, 1), z[0].repeat(len(masked), 1))
        metrics = {"loss_whole": whole, "loss_crops": each.detach().sum(dim=0).mean() - whole, "explained": explained}
        return each.sum(dim=0), {**metrics, "temperature": temperature, **mask_statistics(masks)}

    def _mask_loss(self, micro: dict[str, Tensor], progress: Progress) -> tuple[Tensor, dict[str, Tensor]]:
        """−Σ_k L_k over the N masked views + α P, `[B]`; the student is given."""
        config, a, b = self.config, micro["a"], micro["b"]
        with torch.no_grad():
            z_a = self.student.embed(self.student.tokens([a])[0].cls)
        masks = self.mask_model.masks(b)
        (tokens,) = self.student.tokens([apply_masks(b, masks).flatten(0, 1)])
        z_b = self.student.embed(tokens.cls).unflatten(0, (-1, len(a)))
        temperature = scalar(self.temperature(progress), a.device)
        adversarial = self._contrasts(z_a, z_b, temperature, progress).sum(dim=0)
        sparsity = penalty(masks, config.sparsity_penalty_type, config.sparsity_target)
        metrics = {"loss_adversarial": adversarial.detach().mean(), "sparsity_penalty": sparsity.detach().mean()}
        return config.alpha_sparsity * sparsity - adversarial, metrics

    def _contrasts(self, z_a: Tensor, z_b: Tensor, temperature: Tensor, progress: Progress) -> Tensor:
        """L_v of this rank's images among those of all ranks: z_a `[B, D]`, z_b `[V, B, D]` -> `[V, B]`."""
        everyone = self.gather(torch.cat([z_a[None], z_b]).transpose(0, 1).contiguous()).transpose(0, 1)
        check_whole_batch(everyone.shape[1], progress.global_batch, "the contrastive loss", "micro_batch")
        return contrast(z_a, z_b, everyone[0], everyone[1:], temperature, self.rank * len(z_a))

    def _crops(self, seen: Tensor, places: Tensor) -> Tensor:
        """K crops of each masked view `[N, B, 3, S, S]` by maps `[B, N·K, 2, 3]` -> `[N·K·B, 3, s, s]`."""
        count = self.config.crops_per_mask
        images = seen.repeat_interleave(count, dim=0).flatten(0, 1)
        return crops(images, places.transpose(0, 1).flatten(0, 1), self.config.crops.size)

    def _normalise(self, images: Tensor) -> Tensor:
        """Images in 0…1 → normalised, with the mean colour at 0, the value of masked pixels."""
        mean, std = (constant(tuple(v), images.device) for v in (self.config.data.mean, self.config.data.std))
        return (images - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)

    def _train_only(self, phase: str) -> None:
        """Freeze what the phase does not train: no gradients, no dropout."""
        for name, module in ((STUDENT, self.student), (MASK, self.mask_model)):
            module.requires_grad_(name == phase).train(name == phase)


def apply_masks(images: Tensor, masks: Tensor) -> Tensor:
    """x ⊙ (1 − m_n): normalised images `[B, 3, H, W]`, masks `[B, N, H, W]` -> `[N, B, 3, H, W]`."""
    return images[None] * (1 - masks.transpose(0, 1)[:, :, None])


def advice(signals: Mapping[str, float], most: int) -> list[str]:
    """What to change when the signals look like collapse; `most` is the largest possible rank."""
    lines = []
    std, rank = signals["feature_std"], signals["feature_rankme"]
    if std < LOW_STD:
        lines.append(
            f"features collapse: feature_std {std:.4f} is below {LOW_STD}; lower lr, lengthen "
            "optimization.warmup_iterations, raise final_temp"
        )
    if most >= 8 * LOW_RANK and rank < LOW_RANK:
        lines.append(
            f"features span few dimensions: feature_rankme {rank:.1f} is below {LOW_RANK}; raise batch_size_per_gpu "
            "or num_masks, lower lr"
        )
    return lines
