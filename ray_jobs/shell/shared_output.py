"""Whether every node on which a run may be at work sees its folder: asked before training, of a local path only.

A path on the driver's own disk is an empty place on another node: its worker, or the task there that looks up rows for
a worker elsewhere (Ray Data spreads them over all nodes with a CPU), would find no plan, and a checkpoint written there
would be found by nobody.
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
    """UserError, naming the nodes, when one that could hold a worker of `resources`, or a task, does not see `folder`.

    A token is written into the folder and looked for by a tiny task per node. A node that does not answer in a minute
    is only warned about: it may be on its way out.
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
        blind = _blind(token, others)
    finally:
        os.remove(token)
    if blind:
        raise UserError(
            "workers or the tasks that feed them may run on nodes that do not see the run's folder",
            file=folder,
            key="output",
            found=f"not there on {', '.join(blind)}",
            expected="a folder that all nodes share, or a URL (gs://, s3://)",
        )


def _holds(node: Mapping[str, Any], resources: Mapping[str, float]) -> bool:
    own = node["Resources"]
    return own.get("CPU", 0.0) > 0 or all(own.get(name, 0.0) >= amount for name, amount in resources.items())


def _blind(token: str, nodes: Sequence[Mapping[str, Any]]) -> list[str]:
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
        log.warning("the node %s does not say whether it sees %s", asked[answer]["NodeManagerAddress"], token)
    return [asked[answer]["NodeManagerAddress"] for answer in answered if not ray.get(answer)]
