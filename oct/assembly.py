"""Builds the parts of one OCT pretraining run from its resolved config and its plan. No Ray, no devices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from oct.config import RunConfig
from oct.data import VolumeReader
from oct.plan import identity
from oct.recipe import OctRecipe
from oct.settings import SCIENCE, encoder_of, export_encoder, loop_settings
from oct.validation import HeldOutLoss, chosen_sources
from pathray.data.order import Order, uniform_order
from pathray.data.plan import Plan
from pathray.data.units import UnitReader
from pathray.train.assembly import Assembly
from pathray.train.from_config import device_of, run_identity, shared_parts


def assemble(config: RunConfig, plan: Plan, world: int) -> Assembly:
    """Recipe, order, reader and loop settings of `config`, after oct.config.resolve."""
    parts = _assemble(config, plan, world)
    data = config.data
    if data.allow_smaller_image and data.smaller_image != data.image_size:
        shrunk = replace(config, data=replace(data, image_size=data.smaller_image))
        parts.smaller = lambda: replace(_assemble(shrunk, plan, world, data.image_size), identity=parts.identity)
    return parts


def _assemble(config: RunConfig, plan: Plan, world: int, native: Sequence[int] = ()) -> Assembly:
    reader = VolumeReader.of(config, plan)
    return build(config, plan, world, reader, reader.without_crops(), identity(plan), native)


def build(
    config: RunConfig,
    plan: Plan,
    world: int,
    reader: UnitReader,
    centred: UnitReader,
    digest: str,
    native: Sequence[int] = (),
) -> Assembly:
    """The same with other readers of the plan's volumes: `centred` for validation. `digest` of the plan's units;
    `native`: the size of volumes that the run was begun with, if it is not that of `config`."""
    device = device_of(config)
    recipe = OctRecipe(config, device.gather_sum_grad, native)
    held_out = chosen_sources(plan, config.validation, config.data.seed)
    return Assembly(
        science=SCIENCE,
        recipe=recipe,
        settings=loop_settings(config, world),
        order=order_of(config, plan),
        reader=reader,
        identity=identity_of(config, digest),
        export=export_encoder,
        watch=HeldOutLoss(config, recipe, centred, held_out, device) if len(held_out) else None,
        encoder=encoder_of,
        tuning=config.tuning if config.tuning.enable else None,
        passes_name="volume_passes_seen",
        **shared_parts(config, config.data.stream_batch_size),
    )


def order_of(config: RunConfig, plan: Plan) -> Order:
    """Which volume is at which position: a pass is every volume once."""
    return uniform_order(plan.rows, config.data.seed)


def identity_of(config: RunConfig, plan: str) -> dict[str, Any]:
    """The fingerprint that a resumed run must share: the config's identity fields and the volumes in their order.
    `plan` is the digest that oct.plan.identity returns."""
    return run_identity(config, SCIENCE, plan)
