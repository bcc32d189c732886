"""The loop's settings of a MIL training, and how its best state is chosen, from a resolved config."""

from __future__ import annotations

from typing import Any

from mil.config import LOG_EVERY, LOWER_IS_BETTER, RunConfig
from mil.target import SURVIVAL
from pathray.optim.schedules import Schedule, constant
from pathray.train import from_config
from pathray.train.budget import log_cadence, resolve_cadence
from pathray.train.from_config import run_identity
from pathray.train.settings import LoopSettings, PhaseOptim
from pathray.train.supervised import Selection

SCIENCE = "mil"


def loop_settings(config: RunConfig, world: int) -> LoopSettings:
    """AdamW with a warm-up and a cosine to 0. UserError when `world` does not divide the batch."""
    settings = config.training
    batch, total = int(settings.global_batch or 0), int(settings.slides or 0)
    assert batch > 0 and total > 0, "resolve the config"
    lr = Schedule("warmup_cosine", settings.lr / 10, last=0.0, peak=settings.lr, warmup=settings.warmup)
    return from_config.loop_settings(
        config,
        settings,
        world,
        seed=settings.seed,
        global_batch=batch,
        micro_batch=settings.batch_size_per_gpu,
        total_images=total,
        optim={"model": PhaseOptim(lr=lr, weight_decay=constant(settings.weight_decay), clip=settings.clip_grad)},
        precision=settings.precision,
        log_every=log_cadence(config.logging.log_every, most=LOG_EVERY, global_batch=batch, total_images=total),
        whole_batch="the Cox loss" if config.data.task == SURVIVAL else "",
    )


def selection(config: RunConfig, rows: int) -> Selection:
    """How the best state is chosen; `rows` is the number of training slides, the length of an epoch."""
    metric = config.eval.primary or "loss"
    batch = int(config.training.global_batch or 0)
    every = resolve_cadence(config.eval.every, global_batch=batch, epoch_images=rows, key="eval.every")
    mode = "min" if metric in LOWER_IS_BETTER else "max"
    return Selection(metric, mode, every, config.eval.patience, config.eval.min_evals)


def identity_of(config: RunConfig, plan: str, initial: str) -> dict[str, Any]:
    """The fingerprint that a resumed run must share: identity fields, the plan's digest, and that of weights that the
    aggregator starts from."""
    return run_identity(config, SCIENCE, plan, initial=initial)
