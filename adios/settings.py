"""Derives loop settings and exports from a resolved run config.

Not here: the recipe itself (adios.recipe) and how the parts are assembled (adios.assembly).
"""

from __future__ import annotations

from typing import Any

from adios import artifact
from adios.config import LOG_EVERY, RunConfig, warmup_steps
from adios.student import student_config
from pathray.config.load import fingerprint
from pathray.optim.schedules import Schedule, constant
from pathray.store.artifact import Encoder
from pathray.store.storage import Storage
from pathray.train import from_config
from pathray.train.budget import log_cadence
from pathray.train.recipe import Recipe
from pathray.train.settings import LoopSettings, PhaseOptim

SCIENCE = "adios"


def loop_settings(config: RunConfig, world: int) -> LoopSettings:
    """Settings of the loop; each of `world` workers takes its share of a step at once."""
    settings, batch, total = config.optimization, int(config.global_batch or 0), int(config.total_images or 0)
    assert batch > 0 and total > 0, "resolve the config"
    return from_config.loop_settings(
        config,
        settings,
        world,
        seed=config.seed,
        global_batch=batch,
        micro_batch=batch // world,
        total_images=total,
        optim={"student": phase_optim(config, 1.0), "mask": phase_optim(config, settings.mask_lr_ratio)},
        precision=settings.precision,
        log_every=log_cadence(config.logging.log_every, most=LOG_EVERY, global_batch=batch, total_images=total),
        snapshots={"iterations": config.save_freq},
        tuning=config.tuning,
        window=config.data.archive_window,
        whole_batch="the contrastive loss",
    )


def phase_optim(config: RunConfig, ratio: float) -> PhaseOptim:
    """The optimizer of a phase: its rate is `ratio` of `lr`, from 0 in a linear warm-up, then a cosine."""
    settings = config.optimization
    last, peak = ratio * settings.final_lr, ratio * config.lr
    warmup = warmup_steps(config)
    return PhaseOptim(
        kind=config.optimizer_type,
        lr=Schedule("warmup_cosine", 0.0 if warmup else peak, last=last, peak=peak, warmup=float(warmup)),
        weight_decay=constant(settings.weight_decay),
        betas=(settings.betas[0], settings.betas[1]),
        momentum=settings.momentum,
        clip=settings.clip_grad,
        lars=config.use_lars,
        lars_trust=settings.lars_trust,
        lars_clip=settings.lars_clip,
    )


def check_networks(config: RunConfig) -> None:
    """UserError for values that no network or schedule can be built from. Builds nothing."""
    student_config(config)
    artifact.config_in(fingerprint(config)["values"])
    warmup_steps(config)


def encoder_of(recipe: Recipe) -> Encoder:
    """The student without its head, with the preprocessing of its inputs and its provenance."""
    from adios.recipe import AdiosRecipe

    assert isinstance(recipe, AdiosRecipe)
    data = recipe.config.data
    preprocessing = {"mean": list(data.mean), "std": list(data.std), "size": data.image_size, "mpp": data.mpp}
    return Encoder(recipe.student.vit, preprocessing, SCIENCE, from_config.run_provenance(recipe.config))


def export(recipe: Recipe, folder: str, facts: dict[str, Any]) -> None:
    """Write the student as an encoder artifact into `folder`, and the mask model next to that folder."""
    from adios.recipe import AdiosRecipe

    assert isinstance(recipe, AdiosRecipe)
    encoder_of(recipe).save(folder, facts)
    data, beside = recipe.config.data, Storage.of(folder).url.rstrip("/").rpartition("/")[0]
    known = {**from_config.run_provenance(recipe.config), **facts}
    artifact.save(f"{beside}/{artifact.FOLDER}", recipe.mask_model, data.mean, data.std, known)
