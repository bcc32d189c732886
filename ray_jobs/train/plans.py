"""Where a plan is that every worker of a training reads. Not here: what a plan is (pathray.data.plan)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pathray.run.layout import PLAN

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
