"""The plan of a training: where every worker reads it, the one that a run was begun with, and a new one in its place.

Not here: what a plan is (pathray.data.plan), how a science builds one.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pathray.errors import UserError
from pathray.run.layout import PLAN
from ray_jobs.train.training_jobs import checkpoint_to_resume, recorded_identity

if TYPE_CHECKING:
    from pathray.data.plan import Plan
    from pathray.store.storage import Storage


def share_plan(plan: Plan, folder: str, root: Storage, name: str = PLAN) -> Plan:
    """The plan, built in `folder`, where every worker reads it: below `root`, copied there if that is remote."""
    if root.local:
        return plan
    from pathray.data.plan import Plan as Opened
    from pathray.data.plan import publish

    publish(folder, root.join(name))
    return Opened.open(root.join(name))


def reopen_plan(config: Any, root: Storage, folder: str, identity: Callable[[Plan], str]) -> Plan | None:
    """The plan that the run was begun with, in `folder` or below `root`, when it is still there and whole: what was
    added to the data since is not part of the run. None for a new run, and for one that may have another plan
    (`checkpoint.resume_changes=[plan]`). `identity` is the science's digest of a plan."""
    from pathray.data.plan import Plan

    known = recorded_identity(config).get("plan")
    if known is None or "plan" in config.checkpoint.resume_changes:
        return None
    for place in [folder] if root.local else [folder, root.join(PLAN)]:
        try:
            plan = Plan.open(place, verify=True)
        except UserError:  # lost, or never on this machine
            continue
        if identity(plan) == known:
            return plan
    return None


def replace_plan(config: Any, folder: str, build: Callable[[str], Plan], check: Callable[[Plan], None]) -> Plan:
    """The plan that `build` makes of the data that there are now, in `folder`. Where a run is resumed, it takes the
    place of the run's own only after `check`, which raises a UserError for a plan that the run may not have."""
    from pathray.data.plan import Plan
    from pathray.store.atomic import replace_folder

    if checkpoint_to_resume(config) is None:
        return build(folder)
    candidate = f"{folder}-other"
    try:
        check(build(candidate))
        replace_folder(Path(candidate), Path(folder))
    finally:
        shutil.rmtree(candidate, ignore_errors=True)
    return Plan.open(folder)
