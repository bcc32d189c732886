"""The parts of one regression run, put together from its resolved config and its plan. No Ray, no devices."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pathray.config.load import fingerprint
from pathray.data.order import uniform_order
from pathray.data.plan import Plan
from pathray.data.stream import DecodeSettings
from pathray.device import Device
from pathray.optim.schedules import Schedule, constant
from pathray.train.assembly import Assembly
from pathray.train.budget import log_cadence, resolve_cadence
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
POLL_EVERY_STEPS = 10  # of an accelerator, which the host would wait for; a CPU's counters are at hand


def assemble(config: RunConfig, plan: Plan, world: int) -> Assembly:
    """Recipe, order, reader and loop settings of `config`, which regression.config.resolve has filled in. Where there
    is nothing to validate on, nothing selects: the last state is the one that is exported."""
    data = config.data
    kept = kept_features(config, plan)
    return Assembly(
        science=SCIENCE,
        tag=config.logging.write_tag,
        recipe=RegressionRecipe(config, normaliser(plan), features=kept),
        settings=loop_settings(config, world),
        order=uniform_order(plan.rows, config.seed),  # an epoch is a pass: every training row once
        reader=ImageReader.of(plan, config.seed, data.image_size) if kept is None else FeatureReader.of(plan, kept),
        identity=identity_of(config, plan_identity(plan)),
        placement=fingerprint(config, placement=True),
        export=export,
        decode_on=data.decode_on,
        decode=DecodeSettings(data.threads, data.ahead, data.ahead_mb << 20, data.read_timeout_s),
        decode_tasks=data.threads,
        chunk=data.stream_batch_size,
        latest_minutes=config.checkpoint.latest_minutes,
        keep_last_n=config.checkpoint.keep_last_n,
        selection=selection(config, plan.rows) if rows_of(plan, "val").size >= 2 else None,
        validate=lambda state: validator(plan, config.eval, state.device)(state),
    )


def kept_features(config: RunConfig, plan: Plan) -> npt.NDArray[np.float32] | None:
    """`[N, D]` of all rows of `plan.sources`, where the backbone is frozen and every image always looks the same."""
    if not uses_cache(config):
        return None
    assert config.model.features is not None, "the job computes them before"
    return FeatureFolder(config.model.features, tuple(plan.sources["path"].to_pylist())).load().seen


def loop_settings(config: RunConfig, world: int) -> LoopSettings:
    """Settings of the loop. UserError when `world` workers cannot share the global batch."""
    train, batch = config.train, int(config.train.global_batch or 0)
    assert batch > 0 and train.images, "resolve the config"
    on_cpu = Device.of(config.scaling.accelerator).kind == "cpu"
    loop = LoopSettings(
        seed=config.seed,
        global_batch=batch,
        micro_batch=train.batch_size,
        total_images=-(-train.images // batch) * batch,
        optim={"model": PhaseOptim(lr=_lr(config), weight_decay=constant(train.weight_decay), clip=train.clip_grad)},
        precision="fp32" if on_cpu or train.amp == "none" else train.amp,
        log_every=log_cadence(config.logging.log_every, most=LOG_EVERY, global_batch=batch, total_images=train.images),
        save_every=resolve_cadence(config.checkpoint.latest_every or 0, global_batch=batch),
        poll_every_steps=1 if on_cpu else POLL_EVERY_STEPS,
        max_bad_steps=train.max_bad_steps,
        max_corrupt_fraction=config.data.max_corrupt_fraction,
        grad_sync=train.grad_sync,
        deterministic=train.deterministic,
    )
    loop.micros_per_step(world)
    return loop


def selection(config: RunConfig, rows: int) -> Selection:
    """How the best checkpoint is chosen; `rows` is the number of training rows, an epoch's length."""
    batch = int(config.train.global_batch or 0)
    every = resolve_cadence(config.eval.every, global_batch=batch, epoch_images=rows, key="eval.every")
    return Selection(config.eval.primary, "max", every, config.eval.patience)


def identity_of(config: RunConfig, plan: str) -> dict[str, Any]:
    """The fingerprint that a resumed run must share: identity fields, the plan's digest, and what the weights began
    from."""
    values = {**fingerprint(config)["values"], "science": SCIENCE, "plan": plan, "initial": initial_digest(config)}
    return fingerprint(values)


def export(recipe: Recipe, folder: str, facts: dict[str, Any]) -> None:
    """Write the trained model with its preprocessing, gene names and their scale."""
    assert isinstance(recipe, RegressionRecipe)
    provenance = {"config": fingerprint(recipe.config)["values"], **facts}
    artifact.save(folder, recipe.net, recipe.preprocessing, recipe.normaliser, provenance)


def _lr(config: RunConfig) -> Schedule:
    train = config.train
    if train.scheduler == "none":
        return constant(train.lr)
    if train.scheduler == "step":
        return Schedule("step", train.lr)
    return Schedule("warmup_cosine", train.lr / 10, last=0.0, peak=train.lr, warmup=train.warmup)
