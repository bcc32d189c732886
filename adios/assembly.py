"""Builds the parts of one ADIOS run from its resolved config and its plan. No Ray."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from adios.augment import count_draws
from adios.config import RunConfig
from adios.data import PatchReader
from adios.pictures import MaskPictures
from adios.plan import identity as plan_identity
from adios.recipe import AdiosRecipe
from adios.settings import SCIENCE, encoder_of, export, loop_settings
from pathray.data.order import Order, uniform_order
from pathray.data.plan import Plan
from pathray.data.share import Lookup
from pathray.data.stream import decode
from pathray.device import Device
from pathray.run.layout import MASK_PICTURES
from pathray.store.storage import Storage
from pathray.train.assembly import Assembly
from pathray.train.from_config import device_of, run_identity, shared_parts


def assemble(config: RunConfig, plan: Plan, world: int) -> Assembly:
    """Recipe, order, reader and loop settings of `config`, after adios.config.resolve."""
    data, device = config.data, device_of(config)
    recipe = AdiosRecipe(config, device.gather_sum_grad, device.rank if device.reduces else 0)
    order = order_of(config, plan)
    reader = PatchReader.of(
        plan, config.seed, size=data.image_size, draws=count_draws(config), max_open=data.max_open_archives
    )
    return Assembly(
        science=SCIENCE,
        recipe=recipe,
        settings=loop_settings(config, world),
        order=order,
        reader=reader,
        identity=identity_of(config, plan_identity(plan)),
        export=export,
        watch=pictures(config, recipe, partial(read_first_patches, reader, Lookup(plan, order)), device),
        encoder=encoder_of,
        tuning=config.tuning if config.tuning.enable else None,
        passes_name="patch_passes_seen",
        **shared_parts(config, data.stream_batch_size),
    )


def order_of(config: RunConfig, plan: Plan) -> Order:
    """Which patch is at which position: a pass is every patch once."""
    window = config.data.archive_window
    return uniform_order(plan.rows, config.seed, window=window, segments=plan.segments() if window else None)


def identity_of(config: RunConfig, plan: str) -> dict[str, Any]:
    """The fingerprint that a resumed run must share: the config's identity fields and the patches in their order.
    `plan` is the digest that adios.plan.identity returns."""
    return run_identity(config, SCIENCE, plan)


def read_first_patches(reader: PatchReader, lookup: Lookup, count: int) -> Any:
    """The patches at the first `count` positions, uint8 `[count, S, S, 3]`, which all pictures of a run show."""
    return decode(reader, lookup(np.arange(count)), lookup)["image"]


def pictures(config: RunConfig, recipe: AdiosRecipe, images: Any, device: Device) -> MaskPictures | None:
    """Pictures of masks every `viz_freq` iterations, in `visualizations/masks` of the run; rank 0 writes. None on other
    processes, except on XLA, where all hosts run one program."""
    if not config.viz_freq or not config.output or (device.reduces and device.rank > 0):
        return None
    folder = Storage.of(config.output).join(MASK_PICTURES) if device.rank == 0 else None
    return MaskPictures(recipe, images, config.viz_freq, folder)
