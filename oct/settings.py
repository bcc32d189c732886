"""Derives loop settings and the export from a resolved run config.

Not here: the recipe itself (oct.recipe) and how the parts are assembled (oct.assembly).
"""

from __future__ import annotations

from typing import Any

from oct.config import LOG_EVERY, RunConfig
from oct.volume import CENTER, GREY
from pathray.optim.schedules import Schedule, constant
from pathray.store.artifact import Encoder
from pathray.train import from_config
from pathray.train.budget import log_cadence
from pathray.train.recipe import Recipe
from pathray.train.settings import LoopSettings, PhaseOptim

SCIENCE = "oct"


def loop_settings(config: RunConfig, world: int) -> LoopSettings:
    """Settings of the loop for a config after oct.config.resolve. UserError when `world` does not divide the batch."""
    settings = config.optimization
    batch, total = int(settings.global_batch or 0), int(settings.total_images or 0)
    assert batch > 0 and total > 0 and settings.micro_batch, "resolve the config"
    return from_config.loop_settings(
        config,
        settings,
        world,
        seed=config.data.seed,
        global_batch=batch,
        micro_batch=settings.micro_batch,
        total_images=total,
        optim={"model": phase_optim(config)},
        precision=settings.precision,
        log_every=log_cadence(config.logging.log_every, most=LOG_EVERY, global_batch=batch, total_images=total),
        snapshots=config.logging.save_every,
        tuning=config.tuning,
        whole_batch=config.model.whole_batch,
    )


def phase_optim(config: RunConfig) -> PhaseOptim:
    """AdamW: a linear warm-up of the configured length, then a cosine down to `final_lr`; constant weight decay, which
    pathray.optim.groups keeps from biases, norms, tokens and positions."""
    settings = config.optimization
    steps = int(settings.warmup) // int(settings.global_batch or 1)
    first = settings.start_lr if steps else settings.lr
    return PhaseOptim(
        kind="adamw",
        lr=Schedule("warmup_cosine", first, last=settings.final_lr, peak=settings.lr, warmup=float(steps)),
        weight_decay=constant(settings.weight_decay),
        betas=(settings.betas[0], settings.betas[1]),
        clip=settings.clip_grad,
    )


def encoder_of(recipe: Recipe) -> Encoder:
    """The teacher with the preprocessing of its inputs and its provenance."""
    from oct.recipe import OctRecipe

    assert isinstance(recipe, OctRecipe)
    provenance = from_config.run_provenance(recipe.config)
    return Encoder(recipe.encoder, preprocessing(recipe.config), SCIENCE, provenance)


def export_encoder(recipe: Recipe, folder: str, facts: dict[str, Any]) -> None:
    """Write the teacher as an encoder artifact."""
    encoder_of(recipe).save(folder, facts)


def preprocessing(config: RunConfig) -> dict[str, Any]:
    """The inputs that an encoder of this run expects: volumes on this grid, each normalised over its own voxels.

    `mean` and `std` are what is subtracted and divided by after `normalise`, here nothing. Extraction from images,
    which knows no `normalise`, refuses such an encoder instead of feeding it other values.
    """
    crop = {} if config.data.crop == CENTER else {"crop": config.data.crop}  # earlier versions knew center alone
    return {
        "mean": [0.0],
        "std": [1.0],
        "size": list(config.data.image_size),
        "mpp": None,
        "spacing_mm": list(config.data.spacing_mm),
        "grey": GREY,  # the largest value of a volume on the grid
        "normalise": "volume_inside",  # (x - mean) / std over the voxels inside the image's box; 0 outside of it
        **crop,
    }
