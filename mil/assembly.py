"""Builds the parts of one MIL training from its resolved config and its plan. No Ray, no devices."""

from __future__ import annotations

from typing import Any

from mil.artifact import save
from mil.config import RunConfig
from mil.data import BagReader
from mil.model.build import initial_digest
from mil.plan import identity, rows_of, strata, target_of
from mil.predict import validator
from mil.recipe import MILRecipe
from mil.settings import SCIENCE, identity_of, loop_settings, selection
from pathray.data.order import Order, stratified_order, uniform_order
from pathray.data.plan import Plan
from pathray.train.assembly import Assembly
from pathray.train.from_config import device_of, run_provenance, shared_parts
from pathray.train.recipe import Recipe


def assemble(config: RunConfig, plan: Plan, world: int) -> Assembly:
    """Recipe, order, reader and loop settings of `config`, after mil.config.resolve. Without validation slides the last
    state is exported."""
    target, device = target_of(plan), device_of(config)
    recipe = MILRecipe(config, target, device.gather_sum_grad, device.rank if device.reduces else 0)
    reader = BagReader(plan, config.training.seed, config.data.max_instances)

    def export(trained: Recipe, folder: str, facts: dict[str, Any]) -> None:
        assert isinstance(trained, MILRecipe)
        known = {**run_provenance(trained.config), **facts}
        save(folder, trained.net, trained.config, target, known, encoder=str(plan.meta["encoder"]))

    return Assembly(
        science=SCIENCE,
        recipe=recipe,
        settings=loop_settings(config, world),
        order=order_of(config, plan),
        reader=reader,
        identity=identity_of(config, identity(plan), initial_digest(config)),
        export=export,
        selection=selection(config, plan.rows) if rows_of(plan, "val").size else None,
        validate=validator(plan, reader, config.data.threads),
        passes_name="slide_passes_seen",
        **shared_parts(config, config.data.stream_batch_size),
    )


def order_of(config: RunConfig, plan: Plan) -> Order:
    """Which slide is at which position: every slide once per pass, or an equal share of the positions per class."""
    if config.data.sampling == "balanced":
        return stratified_order(strata(plan), config.training.seed)
    return uniform_order(plan.rows, config.training.seed)
