"""Checks this machine, or every node of a cluster, for what jobs need, with advice for each finding."""

from __future__ import annotations

import os
import shutil
import socket
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pathray.config.checks import check_accelerator
from pathray.config.load import Loaded
from pathray.errors import UserError
from ray_jobs.checks.nodes import FAIL, OK, WARN, Check
from ray_jobs.shell.cli import Outputs, job
from ray_jobs.shell.dry_run import check_files, tell
from ray_jobs.shell.runtime import RuntimeConfig

CONFIGS_DIR = Path(__file__).parent / "configs"
MUST_BE_EQUAL = ("python", "ray", "torch", "pathray")


@dataclass
class DoctorConfig:
    storage: str = ""  # folders or URLs that must be writable from every node, separated by commas
    slides: str = ""  # slides to open on every node: paths, folders or manifests (.csv), separated by commas
    accelerator: str = "auto"  # auto | cpu | cuda | xla; a named one must be present
    nodes: int = 0  # fail if the cluster has fewer nodes (set it to all hosts of a TPU slice)
    ray: bool = True  # start or join Ray; false: check only this machine, without Ray
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)

    def __post_init__(self) -> None:
        check_accelerator(self.accelerator, "accelerator")


@dataclass(frozen=True)
class NodeReport:
    node: str
    versions: dict[str, str]
    checks: list[Check]


def main(loaded: Loaded[DoctorConfig]) -> Outputs | None:
    config = loaded.config
    storage, slides = _split_list(config.storage), _slides(config.slides)
    if loaded.dry_run:
        print("would check:", ", ".join(["packages", "memory", "disk", "decoders", "accelerators", *storage, *slides]))
        return tell((len(storage), "folders"), (check_files(slides, config.slides, "slides"), "slides"))
    reports = _over_ray(config, storage, slides) if config.ray else [examine(config.accelerator, storage, slides)]
    print(table(reports, shutil.get_terminal_size((160, 24)).columns))
    worst = [check.status for report in reports for check in report.checks]
    print(f"\n{worst.count(FAIL)} failed, {worst.count(WARN)} warnings, {worst.count(OK)} ok")
    return Outputs(exit_code=1 if FAIL in worst else 0)


def examine(accelerator: str, storage: Sequence[str], slides: Sequence[str]) -> NodeReport:
    """All checks on the machine this runs on."""
    from ray_jobs.checks import accelerators as accelerator_checks
    from ray_jobs.checks import nodes as node_checks

    folders = [url for url in storage if "://" not in url]
    checks = node_checks.run_all_checks(folders or [os.getcwd()], storage, slides)
    for name, check in accelerator_checks.list_checks(accelerator):
        checks += node_checks.run_check(name, check)
    return NodeReport(socket.gethostname(), node_checks.versions(MUST_BE_EQUAL), checks)


def _over_ray(config: DoctorConfig, storage: Sequence[str], slides: Sequence[str]) -> list[NodeReport]:
    from ray_jobs.shell.runtime import ray_session

    here = NodeReport(f"{socket.gethostname()} (driver)", {}, [])
    try:
        with ray_session(config.runtime, cpus=0) as session:
            here.checks.extend(_ray_checks(session.embedded, session.resources, config.nodes))
            return [here, *_on_every_node(config.accelerator, storage, slides)]
    except UserError:
        raise
    except Exception as e:
        advice = "see /tmp/ray/session_latest/logs; stop leftover Ray processes; free memory and /dev/shm"
        here.checks.append(
            Check("ray", FAIL, f"{type(e).__name__}: {str(e).splitlines()[0] if str(e) else ''}", advice)
        )
        return [here, examine(config.accelerator, storage, slides)]


def _ray_checks(embedded: bool, resources: dict[str, float], nodes: int) -> list[Check]:
    import ray

    alive = [node for node in ray.nodes() if node["Alive"]]
    shown = ", ".join(f"{v:g} {k}" for k, v in sorted(resources.items()) if k in ("CPU", "GPU", "TPU"))
    rows = [Check("ray", OK, f"{ray.__version__}, {'embedded' if embedded else 'attached'}, {shown}")]
    enough = len(alive) >= nodes
    advice = "" if enough else "start Ray on every host: a job on a TPU slice needs all of them (--worker=all)"
    rows.append(
        Check("nodes", OK if enough else FAIL, f"{len(alive)} alive" + ("" if enough else f" of {nodes}"), advice)
    )
    if not embedded and os.environ.get("RAY_AUTH_MODE") != "token":
        advice = "set RAY_AUTH_MODE=token and use a private network: anyone who reaches the jobs API can run code"
        rows.append(Check("ray authentication", WARN, "token authentication is off in this environment", advice))
    return rows


def _on_every_node(accelerator: str, storage: Sequence[str], slides: Sequence[str]) -> list[NodeReport]:
    """Run one task on each node; a node that does not answer in time is a finding."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task = ray.remote(num_cpus=0, max_retries=0)(examine)
    pending: dict[Any, str] = {}
    for node in ray.nodes():
        if node["Alive"]:
            where = NodeAffinitySchedulingStrategy(node_id=node["NodeID"], soft=False)
            answer = task.options(scheduling_strategy=where).remote(accelerator, list(storage), list(slides))
            pending[answer] = node["NodeManagerHostname"]
    ray.wait(list(pending), num_returns=len(pending), timeout=900)
    reports = [_collect_report(answer, name) for answer, name in pending.items()]
    return compare_versions(reports)


def _collect_report(answer: Any, name: str) -> NodeReport:
    import ray

    try:
        report: NodeReport = ray.get(answer, timeout=0)
        return report
    except Exception as e:
        advice = "install the same version of the project on this node (cluster/runtime_env.yaml)"
        found = f"{type(e).__name__}: {str(e).splitlines()[-1] if str(e) else 'no answer'}"
        return NodeReport(name, {}, [Check("node", FAIL, found, advice)])


def compare_versions(reports: list[NodeReport]) -> list[NodeReport]:
    """Add a row to every node whose versions differ from the first node's, since they cannot exchange objects."""
    first = next((r.versions for r in reports if r.versions), {})
    for report in reports:
        for name, version in report.versions.items():
            if version != first.get(name):
                advice = "install the same version on all nodes: one image, or cluster/runtime_env.yaml"
                report.checks.append(Check(f"same {name}", FAIL, f"{version}, elsewhere {first.get(name)}", advice))
    return reports


def table(reports: Sequence[NodeReport], width: int) -> str:
    """The report as text with columns status, check and finding; advice is below its row."""
    lines = []
    names = max((len(c.name) for r in reports for c in r.checks), default=0)
    for report in reports:
        lines.append(f"── {report.node} " + "─" * max(4, width - len(report.node) - 4))
        for check in report.checks:
            left = f"{check.status:<5} {check.name:<{names}}  "
            rest = textwrap.wrap(check.found, max(30, width - len(left))) or [""]
            lines += [left + rest[0], *(" " * len(left) + more for more in rest[1:])]
            if check.advice:
                indent = " " * len(left)
                lines += textwrap.wrap(
                    check.advice, width, initial_indent=f"{indent}→ ", subsequent_indent=f"{indent}  "
                )
    return "\n".join(lines)


def _split_list(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _slides(text: str) -> list[str]:
    """The slides named by paths, by manifests (.csv) and by folders."""
    from ijepath.indexing.manifest import read_manifest
    from pathray.features.inputs import slides_in

    found: list[str] = []
    for path in _split_list(text):
        if not path.lower().endswith(".csv"):
            found += [inside for _, inside in slides_in(path)] if os.path.isdir(path) else [path]
            continue
        rows = read_manifest(path).rows
        for row in rows:
            if row.error:
                raise UserError(row.error, file=path, row=row.number, key="slides")
        found += [row.wsi_path for row in rows]
    return found


if __name__ == "__main__":
    job(main, DoctorConfig, CONFIGS_DIR)
