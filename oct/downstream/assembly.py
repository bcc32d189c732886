"""Builds the parts of one fine-tuning from its resolved config and its plan. No Ray, no devices."""

from __future__ import annotations

from typing import Any

from oct.config import LOG_EVERY
from oct.downstream.artifact import save_model
from oct.downstream.config import SELECTED_BY, DownstreamConfig
from oct.downstream.data import LabelledReader
from oct.downstream.evaluate import validator
from oct.downstream.network import layer_rates
from oct.downstream.plan import classes_of, identity, scale_of, volumes_of
from oct.downstream.recipe import FinetuneRecipe
from oct.settings import SCIENCE
from pathray.data.order import uniform_order
from pathray.data.plan import Plan
from pathray.optim.schedules import Schedule, constant
from pathray.store.artifact import describe
from pathray.train import from_config
from pathray.train.assembly import Assembly
from pathray.train.budget import log_cadence, resolve_cadence
from pathray.train.from_config import run_identity, run_provenance, shared_parts
from pathray.train.recipe import Recipe
from pathray.train.settings import LoopSettings, PhaseOptim
from pathray.train.supervised import Selection


def assemble(config: DownstreamConfig, plan: Plan, world: int) -> Assembly:
    """Recipe, order, reader and loop settings of `config`, after oct.downstream.config.resolve. Without validation
    volumes the last state is exported."""
    classes = classes_of(plan)
    recipe = FinetuneRecipe(config, len(classes))
    reader = LabelledReader.of(config, plan, recipe.given)
    settings = config.optimization
    preprocessing = describe(str(config.model.encoder))["preprocessing"]

    def export(trained: Recipe, folder: str, facts: dict[str, Any]) -> None:
        assert isinstance(trained, FinetuneRecipe)
        known = {**run_provenance(trained.config), **facts}
        save_model(folder, trained.net, preprocessing, classes, scale_of(plan), known)

    return Assembly(
        science=SCIENCE,
        recipe=recipe,
        settings=loop_settings(config, world, recipe.net.encoder.config.depth),
        order=uniform_order(plan.rows, config.data.seed),
        reader=reader,
        identity=identity_of(config, identity(plan)),
        export=export,
        selection=selection(config, plan.rows) if volumes_of(plan, "val").size else None,
        validate=validator(plan, reader, settings.batch_size_per_gpu, config.data.threads),
        **shared_parts(config, config.data.stream_batch_size),
    )


def loop_settings(config: DownstreamConfig, world: int, depth: int) -> LoopSettings:
    """Settings of the loop: AdamW with a warm-up, a cosine to 0 and a learning rate per layer of an encoder of `depth`
    blocks. UserError when `world` does not divide the batch."""
    settings = config.optimization
    batch, total = int(settings.global_batch or 0), int(settings.total_images or 0)
    assert batch > 0 and total > 0, "resolve the config"
    lr = Schedule("warmup_cosine", settings.lr / 10, last=0.0, peak=settings.lr, warmup=settings.warmup)
    optim = PhaseOptim(
        lr=lr,
        weight_decay=constant(settings.weight_decay),
        clip=settings.clip_grad,
        rates=layer_rates(depth, settings.layer_decay),
    )
    return from_config.loop_settings(
        config,
        settings,
        world,
        seed=config.data.seed,
        global_batch=batch,
        micro_batch=settings.batch_size_per_gpu,
        total_images=total,
        optim={"model": optim},
        precision=settings.precision,
        log_every=log_cadence(config.logging.log_every, most=LOG_EVERY, global_batch=batch, total_images=total),
    )


def selection(config: DownstreamConfig, rows: int) -> Selection:
    """How the best state is chosen; `rows` is the number of training volumes, the length of an epoch."""
    metric, mode = SELECTED_BY[config.data.task]
    batch = int(config.optimization.global_batch or 0)
    every = resolve_cadence(config.eval.every, global_batch=batch, epoch_images=rows, key="eval.every")
    return Selection(metric, mode, every, config.eval.patience)


def identity_of(config: DownstreamConfig, plan: str) -> dict[str, Any]:
    """The fingerprint that a resumed run must share: identity fields, the plan's digest, the encoder's weights."""
    model = config.model
    initial = str(describe(str(model.encoder))["sha256"]) if model.weights == "pretrained" else "random"
    return run_identity(config, SCIENCE, plan, initial=initial)
