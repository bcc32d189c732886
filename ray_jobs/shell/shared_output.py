"""Checks, before training, that every node that may work on a run sees its folder (local paths only).

A path on the driver's own disk is empty on another node. Workers there, and tasks that look up rows (Ray Data spreads
them over all nodes with a CPU), would find no plan, and their checkpoints would be lost.
"""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from pathray.errors import UserError

log = logging.getLogger(__name__)
ANSWER_S = 60.0


def check_shared(folder: str, resources: Mapping[str, float]) -> None:
    """UserError, naming the nodes, if one that could run a worker with `resources` or a task does not see `folder`.

    It writes a token into the folder and looks for it in a small task on each node. A node that does not answer within
    a minute causes only a warning, because it may be shutting down.
    """
    import ray

    here = ray.get_runtime_context().get_node_id()
    others = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] != here and _holds(node, resources)]
    if not others:
        return
    os.makedirs(folder, exist_ok=True)
    token = os.path.join(folder, f".seen-by-all-{uuid.uuid4().hex[:8]}")
    with open(token, "wb"):
        pass
    try:
        blind = _nodes_without(token, others)
    finally:
        os.remove(token)
    if blind:
        raise UserError(
            "workers or data tasks may run on nodes that do not see the run's folder",
            file=folder,
            key="output",
            found=f"missing on {', '.join(blind)}",
            expected="a folder that all nodes share, or a URL (gs://, s3://)",
        )


def _holds(node: Mapping[str, Any], resources: Mapping[str, float]) -> bool:
    own = node["Resources"]
    return own.get("CPU", 0.0) > 0 or all(own.get(name, 0.0) >= amount for name, amount in resources.items())


def _nodes_without(token: str, nodes: Sequence[Mapping[str, Any]]) -> list[str]:
    """The addresses of the nodes that do not see the token."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    look = ray.remote(num_cpus=0, max_retries=0)(os.path.exists)
    asked = {
        look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(token): node
        for node in nodes
    }
    answered, silent = ray.wait(list(asked), num_returns=len(asked), timeout=ANSWER_S)
    for answer in silent:
        log.warning("the node %s did not answer whether it sees %s", asked[answer]["NodeManagerAddress"], token)
    return [asked[answer]["NodeManagerAddress"] for answer in answered if not ray.get(answer)]
