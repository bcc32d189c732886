"""Builds the parts of one regression run from its resolved config and its plan. No Ray, no devices."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pathray.data.order import uniform_order
from pathray.data.plan import Plan
from pathray.optim.schedules import Schedule, constant
from pathray.train import from_config
from pathray.train.assembly import Assembly
from pathray.train.budget import log_cadence, resolve_cadence
from pathray.train.from_config import run_identity, run_provenance, shared_parts
from pathray.train.recipe import Recipe
from pathray.train.settings import LoopSettings, PhaseOptim
from pathray.train.supervised import Selection
from regression import artifact
from regression.config import LOG_EVERY, RunConfig
from regression.data import FeatureReader, ImageReader
from regression.evaluate import validator
from regression.features import FeatureFolder, uses_cache
from regression.model import initial_digest
from regression.plan import identity as plan_identity
from regression.plan import normaliser, rows_of
from regression.recipe import RegressionRecipe

SCIENCE = "regression"


def assemble(config: RunConfig, plan: Plan, world: int) -> Assembly:
    """Recipe, order, reader and loop settings of `config`, after regression.config.resolve. Without validation rows the
    last state is exported."""
    data = config.data
    kept = load_features(config, plan)
    return Assembly(
        science=SCIENCE,
        recipe=RegressionRecipe(config, normaliser(plan), features=kept),
        settings=loop_settings(config, world),
        order=uniform_order(plan.rows, config.seed),  # an epoch is a pass: every training row once
        reader=ImageReader.of(plan, config.seed, data.image_size) if kept is None else FeatureReader.of(plan, kept),
        identity=identity_of(config, plan_identity(plan)),
        export=export,
        selection=selection(config, plan.rows) if rows_of(plan, "val").size >= 2 else None,
        validate=lambda state: validator(plan, config.eval, state.device)(state),
        **shared_parts(config, data.stream_batch_size),
    )


def load_features(config: RunConfig, plan: Plan) -> npt.NDArray[np.float32] | None:
    """Features `[N, D]` of all rows of `plan.sources`, if the backbone is frozen and images are not augmented."""
    if not uses_cache(config):
        return None
    assert config.model.features is not None, "the job must compute them first"
    return FeatureFolder(config.model.features, tuple(plan.sources["path"].to_pylist())).load().seen


def loop_settings(config: RunConfig, world: int) -> LoopSettings:
    """Settings of the loop. UserError when `world` does not divide the global batch."""
    train, batch, total = config.train, int(config.train.global_batch or 0), int(config.train.images or 0)
    assert batch > 0 and total > 0, "resolve the config"
    return from_config.loop_settings(
        config,
        train,
        world,
        seed=config.seed,
        global_batch=batch,
        micro_batch=train.batch_size,
        total_images=total,
        optim={"model": PhaseOptim(lr=_lr(config), weight_decay=constant(train.weight_decay), clip=train.clip_grad)},
        precision="fp32" if train.amp == "none" else train.amp,
        log_every=log_cadence(config.logging.log_every, most=LOG_EVERY, global_batch=batch, total_images=total),
    )


def selection(config: RunConfig, rows: int) -> Selection:
    """How the best checkpoint is selected; `rows` is the number of training rows, the length of an epoch."""
    batch = int(config.train.global_batch or 0)
    every = resolve_cadence(config.eval.every, global_batch=batch, epoch_images=rows, key="eval.every")
    return Selection(config.eval.primary, "max", every, config.eval.patience)


def identity_of(config: RunConfig, plan: str) -> dict[str, Any]:
    """The fingerprint that a resumed run must share: identity fields, the plan's digest, and the digest of the initial
    weights."""
    return run_identity(config, SCIENCE, plan, initial=initial_digest(config))


def export(recipe: Recipe, folder: str, facts: dict[str, Any]) -> None:
    """Write the trained model with its preprocessing, gene names and scale."""
    assert isinstance(recipe, RegressionRecipe)
    known = {**run_provenance(recipe.config), **facts}
    artifact.save(folder, recipe.net, recipe.preprocessing, recipe.normaliser, known)


def _lr(config: RunConfig) -> Schedule:
    train = config.train
    if train.scheduler == "none":
        return constant(train.lr)
    if train.scheduler == "step":
        return Schedule("step", train.lr)
    return Schedule("warmup_cosine", train.lr / 10, last=0.0, peak=train.lr, warmup=train.warmup)
