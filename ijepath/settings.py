"""Derives loop settings, the sites of an adversarial head and the export from a resolved run config.

Not here: the recipe itself (ijepath.recipe) and how the parts are assembled (ijepath.assembly).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ijepath.config import LOG_EVERY, RunConfig
from ijepath.indexing.index import read_index
from pathray.data.plan import Plan
from pathray.errors import UserError
from pathray.optim.schedules import Schedule
from pathray.run.layout import SLIDE_INDEX
from pathray.store.artifact import Encoder
from pathray.store.storage import Storage
from pathray.train import from_config
from pathray.train.budget import log_cadence, resolve_cadence
from pathray.train.recipe import Recipe
from pathray.train.settings import LoopSettings, PhaseOptim

SCIENCE = "ijepath"


def loop_settings(config: RunConfig, world: int) -> LoopSettings:
    """Settings of the loop for a config whose global batch and budget (in images) are resolved.

    Metrics are gathered at the finest cadence that is configured. UserError when `world` does not divide the global
    batch.
    """
    settings, batch = config.optimization, int(config.optimization.global_batch or 0)
    assert batch > 0 and settings.micro_batch and isinstance(settings.total_images_budget, int), "resolve the config"
    return from_config.loop_settings(
        config,
        settings,
        world,
        seed=config.data.seed,
        global_batch=batch,
        micro_batch=settings.micro_batch,
        total_images=settings.total_images_budget,
        optim={"model": phase_optim(config)},
        precision="bf16" if config.model.use_bfloat16 else "fp32",
        log_every=_log_every(config, batch, settings.total_images_budget),
        snapshots=config.training.save_every,
        tuning=config.tuning,
        window=config.data.slide_window,
        whole_batch=config.model.whole_batch,
    )


def phase_optim(config: RunConfig) -> PhaseOptim:
    """AdamW; lr: linear warm-up, then cosine; weight decay: cosine from its first to its final value."""
    settings = config.optimization
    return PhaseOptim(
        kind="adamw",
        lr=Schedule(
            "warmup_cosine", settings.start_lr, last=settings.final_lr, peak=settings.lr, warmup=settings.warmup
        ),
        weight_decay=Schedule("cosine", settings.weight_decay, last=settings.final_weight_decay),
        betas=(settings.betas[0], settings.betas[1]),
        clip=settings.clip_grad,
    )


@dataclass(frozen=True)
class Sites:
    """The site of every slide of a plan, as a number (−1: unknown), and the sites' names in that order."""

    numbers: list[int]
    names: list[str]

    @property
    def count(self) -> int:
        return len(self.names)


def site_numbers(config: RunConfig, plan: Plan) -> Sites | None:
    """The sites for `site.adversarial`, None without it: from the plan's slide table, else from the slide index.

    UserError when the column is missing or has fewer than two sites.
    """
    if not config.site.adversarial:
        return None
    values = _site_column(config, plan)
    names = sorted({v for v in values if v})
    if len(names) < 2:
        message = "a site-adversarial head needs at least two sites"
        raise UserError(message, key="site.key", found=f"{config.site.key}: {names}", expected="two or more values")
    place = {name: i for i, name in enumerate(names)}
    return Sites([place.get(v or "", -1) for v in values], names)


def _site_column(config: RunConfig, plan: Plan) -> Sequence[str | None]:
    key = config.site.key
    if key in plan.sources.column_names:
        return [None if v is None else str(v) for v in plan.sources[key].to_pylist()]
    if key == plan.meta.get("sampling_stratum_key"):
        return [str(v) for v in plan.sources["stratum_id"].to_pylist()]
    path = config.data.slide_metadata_parquet
    if path is None and config.output is not None:
        path = Storage.of(config.output).join(SLIDE_INDEX)
    if path is None:
        raise UserError("the slide index is required", key="data.slide_metadata_parquet", expected="a path or URL")
    index = read_index(path)
    if key not in index.metadata_columns:
        message = "the slide manifest has no such metadata column"
        raise UserError(message, file=path, key="site.key", found=key, expected=sorted(index.metadata_columns))
    by_id = {row["slide_id"]: row[key] for row in index.rows}
    return [by_id.get(slide_id) for slide_id in plan.sources["slide_id"].to_pylist()]


def encoder_of(recipe: Recipe) -> Encoder:
    """The teacher with the preprocessing of its inputs and its provenance."""
    from ijepath.recipe import IJepathRecipe

    assert isinstance(recipe, IJepathRecipe)
    return Encoder(recipe.encoder, preprocessing(recipe.config), SCIENCE, provenance(recipe.config))


def export_encoder(recipe: Recipe, folder: str, facts: dict[str, Any]) -> None:
    """Write the teacher as an encoder artifact."""
    encoder_of(recipe).save(folder, facts)


def preprocessing(config: RunConfig) -> dict[str, Any]:
    """The inputs that an encoder of this run expects: target crops at the targets' spacing, as the teacher saw."""
    data, augment = config.data, config.augment
    expected: dict[str, Any] = {
        "mean": list(data.mean),
        "std": list(data.std),
        "size": data.target_px,
        "mpp": data.target_effective_mpp,
    }
    # The teacher only saw pixels with these applied; feature extraction refuses keys that it cannot apply.
    if augment.normalise_brightness:
        expected["normalise_brightness"] = augment.brightness_reference
    if augment.normalise_frequency:
        expected["normalise_frequency"] = augment.normalise_frequency
    return expected


def provenance(config: RunConfig) -> dict[str, Any]:
    """Where an encoder of this run comes from: the profile's name and every identity field of the config."""
    return from_config.run_provenance(config, profile=config.data.name)


def _log_every(config: RunConfig, batch: int, total: int) -> int:
    logging, debug = config.logging, config.logging.performance_debug
    wanted = [
        log_cadence(config.training.log_every, most=LOG_EVERY, global_batch=batch, total_images=total),
        resolve_cadence(logging.step_log_every_images, global_batch=batch, total_images=total, fractions=True),
        resolve_cadence(debug.log_every_images, global_batch=batch) if debug.enable else 0,
    ]
    return min(every for every in wanted if every > 0)
