"""Which run of a regression a command means: its plan, its folder, and the checkpoint that it resumes.

Not here: what is asked of the run before it trains (ray_jobs.regression.checks).
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from pathray.errors import UserError
from pathray.run.layout import CHECKPOINTS, RESULTS
from ray_jobs.regression.checks import is_repeated
from ray_jobs.train.plans import share_plan
from regression.config import RunConfig, resolve, run_name

if TYPE_CHECKING:
    from pathray.data.plan import Plan
    from pathray.store.committed import Committed
    from pathray.store.storage import Storage
    from ray_jobs.train_regression import TrainRegressionConfig

log = logging.getLogger(__name__)


@dataclass
class Run:
    """A run's folder, its plan and its config with batch and budget resolved; the checkpoint that it resumes from."""

    folder: str
    plan: Plan
    config: TrainRegressionConfig
    identity: dict[str, Any]
    newest: Committed | None = None
    paths: dict[str, object] = field(default_factory=dict)


def plan_of(config: RunConfig, scratch: str = "") -> Plan:
    """The plan of table and split, made once for all runs below `output` that train on them: others may read it. In
    the folder `scratch` instead where one is given: a dry run leaves nothing."""
    from pathray.data.plan import Plan as Opened
    from pathray.data.split_files import read_split
    from pathray.store.cache import private_cache
    from pathray.store.storage import Storage
    from regression.plan import build_plan
    from regression.tables.table import read_table

    data = config.data
    table = read_table(data.table, genes=data.genes, target_dim=data.target_dim)
    split = read_split(data.split, table)
    shown = (table.places.hash if table.places is not None else None, table.unit)
    facts = repr((table.hash, table.paths[:1], split.of.tolist(), table.genes, data.normalize_target, shown))
    name = f"{hashlib.sha256(facts.encode()).hexdigest()[:24]}-regression"
    store = Storage.of(scratch or str(config.output))
    folder = store.join("plans", name) if store.local else str(private_cache() / name)
    try:
        plan = Opened.open(folder, verify=True)
    except UserError:  # not there yet, or damaged
        plan = _build_or_open(lambda: build_plan(table, split, folder, normalize_target=data.normalize_target), folder)
    return share_plan(plan, folder, store, f"plans/{name}")


def _build_or_open(build: Callable[[], Plan], folder: str) -> Plan:
    """What `build` gives, or the same that another run has published meanwhile: a folder cannot replace a folder."""
    from pathray.data.plan import Plan as Opened

    try:
        return build()
    except OSError as e:
        try:
            return Opened.open(folder, verify=True)
        except UserError:  # nobody has: it could not be written
            raise e from None


def run_of(config: TrainRegressionConfig, plan: Plan) -> Run:
    """The folder to train in: the one named, else that of a run of the same identity that is unfinished, or finished
    and judged in the same way, else a new one. UserError when the folder named holds another run."""
    from pathray.run.resume import check_resumable, find_checkpoint
    from pathray.store.storage import Storage
    from regression.assembly import identity_of
    from regression.plan import identity as plan_identity

    root, tag = Storage.of(str(config.output)), config.logging.write_tag
    workers = config.scaling.ranks

    def of(name: str, newest: Committed | None = None) -> Run:
        values = newest.meta["identity"]["values"] if newest is not None else {}
        ready = resolve(config, workers, plan.rows, before=values.get("train.global_batch"))
        return Run(root.join(name), plan, ready, identity_of(ready, plan_identity(plan)), newest)

    def same(newest: Committed) -> bool:
        """Whether it is of this config's run; whether these workers can share its batch is asked after that."""
        batch = newest.meta["identity"]["values"].get("train.global_batch")
        alone = replace(config, train=replace(config.train, batch_size=1))
        identity = identity_of(resolve(alone, 1, plan.rows, before=batch), plan_identity(plan))
        return bool(identity["hash"] == newest.meta["identity"]["hash"])

    if config.logging.run_name:
        name = config.logging.run_name
        run = of(name, find_checkpoint(root.join(name), tag, config.checkpoint.resume))
        if run.newest is not None:
            check_resumable(run.newest, run.identity, config.checkpoint.resume_changes)
        return run
    known = runs_in(root, tag) if config.checkpoint.resume == "auto" else []
    for name, newest in known:
        if not root.exists(f"{name}/{RESULTS}") and same(newest):
            log.info("resuming %s", name)
            return of(name, newest)
    for name, newest in known:
        if root.exists(f"{name}/{RESULTS}") and is_repeated(of(name), newest):
            log.info("logging.run_name=NAME or checkpoint.resume=never begins another run of this config")
            return of(name, newest)
    at = time.time()
    while root.exists(name := run_name(config, workers, time.strftime("%Y%m%d_%H%M%S", time.localtime(at)))):
        at += 1  # the name does not say all that sets runs apart: several may begin in a second
    return of(name)


def runs_in(root: Storage, tag: str) -> list[tuple[str, Committed]]:
    """The runs below `root` that have a checkpoint, by name, and their newest ones."""
    from pathray.run.resume import find_checkpoint

    found = []
    for name in sorted(root.list(), reverse=True):
        try:
            newest = find_checkpoint(root.join(name), tag) if root.exists(f"{name}/{CHECKPOINTS}") else None
        except UserError as e:
            if not root.exists(f"{name}/{RESULTS}"):
                raise  # this may be the run to resume
            log.warning("skipping the finished run %s: %s", name, e)
            continue
        if newest is not None:
            found.append((name, newest))
    return found
