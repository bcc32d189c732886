"""Builds the parts of one I-JEPATH run from its resolved config and its plan. No Ray, no devices."""

from __future__ import annotations

from typing import Any

from ijepath.config import RunConfig
from ijepath.data import AnchorReader, ReaderConfig
from ijepath.plan import identity as plan_identity
from ijepath.plan import strata
from ijepath.recipe import IJepathRecipe
from ijepath.settings import SCIENCE, encoder_of, export_encoder, loop_settings, site_numbers
from pathray.data.order import Order, stratified_order, uniform_order
from pathray.data.plan import Plan
from pathray.train.assembly import Assembly
from pathray.train.from_config import device_of, run_identity, shared_parts
from pathray.train.perf import PerformanceWatch


def assemble(config: RunConfig, plan: Plan, world: int) -> Assembly:
    """Recipe, order, reader and loop settings of `config`, whose global batch and budget are resolved.

    UserError for faults that only the plan shows: weights of unknown strata, a missing site column.
    """
    sites = site_numbers(config, plan)
    sources = {name: plan.sources[name].to_pylist() for name in plan.sources.column_names}
    if sites is not None:
        sources["site"] = sites.numbers
    return Assembly(
        science=SCIENCE,
        recipe=IJepathRecipe(config, sites.count if sites is not None else 0, device_of(config).gather_sum_grad),
        settings=loop_settings(config, world),
        order=order_of(config, plan),
        reader=AnchorReader(ReaderConfig.of(config), sources),
        identity=identity_of(config, plan_identity(plan)),
        export=export_encoder,
        watch=performance_watch(config),
        encoder=encoder_of,
        tuning=config.tuning if config.tuning.enable else None,
        passes_name="anchor_passes_seen",
        **shared_parts(config, config.data.anchor_stream_batch_size),
    )


def performance_watch(config: RunConfig) -> PerformanceWatch | None:
    """The observer of `logging.performance_debug`, when that is enabled."""
    debug = config.logging.performance_debug
    if not debug.enable:
        return None
    return PerformanceWatch(
        log_every_images=debug.log_every_images,
        slow_step_ms=debug.slow_step_ms,
        slow_data_wait_ms=debug.slow_data_wait_ms,
    )


def order_of(config: RunConfig, plan: Plan) -> Order:
    """Which anchor is at which position: strata by their weights, or all anchors uniformly."""
    data = config.data
    window = data.slide_window
    segments = plan.segments() if window else None
    if data.sampling_strategy == "global_uniform":
        return uniform_order(plan.rows, data.seed, window=window, segments=segments)
    weights = data.sampling_stratum_weights
    return stratified_order(strata(plan), data.seed, weights, window=window, segments=segments)


def identity_of(config: RunConfig, plan: str) -> dict[str, Any]:
    """The fingerprint that a resumed run must share: the config's identity fields and the anchors in their order.
    `plan` is the digest that ijepath.plan.identity returns."""
    return run_identity(config, SCIENCE, plan)
