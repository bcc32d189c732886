"""The Ray that a job runs on: the cluster it was submitted to, or its own embedded Ray. Not here: what runs on it.

Importing this module does not import ray, so `--help` stays instant.
"""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from pathray.config.load import placement
from pathray.errors import UserError
from ray_jobs.checks.node_watch import NodeLost, end_with, watched_node
from ray_jobs.shell.quiet import NAME, quiet_driver
from ray_jobs.shell.ray_places import check_address, default_folder, temporary_folder

SMALLEST_STORE_MB = 100  # Ray refuses below 75 MiB
_of_workers: dict[str, str] = {}  # see worker_environment


@dataclass
class RuntimeConfig:
    """How a job gets its Ray. All keys are placement."""

    address: str | None = placement(None)  # cluster to join; "local": always an embedded Ray; null: RAY_ADDRESS
    num_cpus: int | None = placement(None)  # logical CPUs of the embedded Ray; null: all, or more if the job needs it
    omp_threads: int = placement(1)  # OMP_NUM_THREADS of tasks and actors; Ray's default is their num_cpus
    object_store_mb: int | None = placement(
        None
    )  # shared memory of the embedded Ray; null: chosen by /dev/shm and memory
    dashboard: bool = placement(False)  # the embedded Ray's dashboard, at http://127.0.0.1:8265
    worker_logs: bool = placement(False)  # show the workers' stdout and stderr in this terminal

    def __post_init__(self) -> None:
        for key, least in (("num_cpus", 1), ("omp_threads", 1), ("object_store_mb", SMALLEST_STORE_MB)):
            value = getattr(self, key)
            if value is not None and value < least:
                message = f"runtime.{key} must be >= {least}"
                raise UserError(message, key=f"runtime.{key}", found=value, expected=f"at least {least}")


@dataclass(frozen=True)
class Session:
    """The Ray in use. `embedded`: this process starts and ends it."""

    embedded: bool
    resources: dict[str, float]


@contextmanager
def ray_session(
    config: RuntimeConfig, *, cpus: float = 1.0, gpus: float = 0.0, autoscaling: bool = False, needed: bool = True
) -> Iterator[Session]:
    """A running Ray with at least `cpus` and `gpus`, or none if not `needed`; shuts down only what it started.

    Joins the cluster at `config.address` or RAY_ADDRESS (set by job submission), or else starts an embedded Ray. Raises
    `UserError` for too few CPUs or GPUs (not with `autoscaling`), or if no cluster answers at the address.
    """
    _set_environment()
    if not needed:
        yield Session(False, {})
        return
    import ray

    if ray.is_initialized():
        yield _require_capacity(Session(False, ray.cluster_resources()), cpus, gpus, autoscaling)
        return
    address = config.address or os.environ.get("RAY_ADDRESS") or "local"
    embedded = address == "local"
    quiet = ExitStack()
    try:
        with _own_signals():
            if embedded:
                _start(ray, config, cpus)
            else:
                _attach(ray, config, address)
        quiet.enter_context(_quiet())
        with watched_node() if embedded else nullcontext():
            yield _require_capacity(Session(embedded, ray.cluster_resources()), cpus, gpus, autoscaling)
    except BaseException as e:
        if isinstance(e.__cause__, NodeLost):
            end_with(ray.shutdown)
        raise
    finally:
        with quiet:
            if ray.is_initialized():
                ray.shutdown()
        _of_workers.clear()


def is_ray_running() -> bool:
    """Whether this process has started or joined a Ray; does not import it."""
    return "ray" in sys.modules and bool(sys.modules["ray"].is_initialized())


def _quiet() -> AbstractContextManager[None]:
    """Redirects Ray's output to this node's folder of Ray logs, if it has one."""
    from ray._private.worker import _global_node

    if _global_node is None:
        return nullcontext()
    return quiet_driver(os.path.join(str(_global_node.get_logs_dir_path()), NAME))


@contextmanager
def _own_signals() -> Iterator[None]:
    """Keep ray.init from installing its SIGTERM handler, which would end the process with code 15."""
    from ray._private import utils

    theirs, before = utils.set_sigterm_handler, signal.getsignal(signal.SIGTERM)
    utils.set_sigterm_handler = lambda handler: None
    try:
        yield
    finally:
        utils.set_sigterm_handler = theirs
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def _set_environment() -> None:
    """Set defaults before ray is imported, without overriding the user's values."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")


def _start(ray: Any, config: RuntimeConfig, cpus: float) -> None:
    # An embedded Ray listens on this machine only and ends with the job: it needs no tokens (the default since 2.59)
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    num_cpus = config.num_cpus or max(os.cpu_count() or 1, math.ceil(cpus) + 2)
    _refuse_shortage("CPU", num_cpus, cpus, "runtime.num_cpus")
    folder = temporary_folder()
    try:
        with _child_environment(_environment_for(config)):
            ray.init(
                address="local",
                num_cpus=num_cpus,
                include_dashboard=config.dashboard,
                object_store_memory=(config.object_store_mb or object_store_mb()) << 20,
                log_to_driver=config.worker_logs,
                logging_level=logging.WARNING,
                _temp_dir=None if folder is None else os.path.join(folder, "ray"),
            )
    except Exception as e:
        raise UserError(
            f"the embedded Ray did not start: {type(e).__name__}: {str(e).strip()[:400]}",
            expected="free memory, room in /dev/shm (or a smaller runtime.object_store_mb) and temporary folder; "
            f"Ray's logs are in {os.path.join(folder or default_folder(), 'ray')}/session_latest/logs",
        ) from e


def _attach(ray: Any, config: RuntimeConfig, address: str) -> None:
    environment = _runtime_env(config)
    key = "runtime.address" if config.address else "RAY_ADDRESS"
    check_address(address, key)
    try:
        ray.init(
            address=address,
            log_to_driver=config.worker_logs,
            logging_level=logging.WARNING,
            runtime_env=environment,
        )
        _of_workers.update(environment["env_vars"])
    except (ConnectionError, ValueError, RuntimeError, ray.exceptions.RuntimeEnvSetupError) as e:
        if "runtime_env" in str(e) or "runtime env" in str(e).lower():
            raise UserError(
                f"the cluster cannot set up this job's runtime environment: {e}",
                key="runtime_env",
                found=environment,
                expected="an environment that all nodes can set up and that does not repeat the submitted job's own",
            ) from e
        raise UserError(
            f"no Ray cluster answers: {e}",
            key=key,
            found=address,
            expected=f"a running head, or local; unset {key} or set it",
        ) from e


def _runtime_env(config: RuntimeConfig) -> dict[str, Any]:
    """The environment without variables that a submitted job already sets, since Ray refuses duplicates."""
    submitted = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR") or "{}")
    given = ((submitted.get("runtime_env") or {}).get("env_vars")) or {}
    return {"env_vars": {name: value for name, value in _environment_for(config).items() if name not in given}}


def _environment_for(config: RuntimeConfig) -> dict[str, str]:
    return {"OMP_NUM_THREADS": str(config.omp_threads), "RAY_USAGE_STATS_ENABLED": "0"}


def worker_environment() -> dict[str, str]:
    """The variables that `ray_session` set in the workers' environment."""
    return dict(_of_workers)


def set_worker_environment(environment: Mapping[str, str]) -> None:
    """Take over `worker_environment` of another process on the same Ray."""
    _of_workers.update(environment)


@contextmanager
def _child_environment(environment: dict[str, str]) -> Iterator[None]:
    """Processes started in the block inherit `environment`. A Ray runtime environment would prevent Ray from using its
    prestarted processes, and a training job would start two seconds later."""
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    try:
        yield
        _of_workers.update(environment)
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def object_store_mb() -> int:
    """Megabytes for an embedded Ray's object store. Little is enough, because only rows are passed, not pixels."""
    shm = shutil.disk_usage("/dev/shm").free >> 20 if os.path.isdir("/dev/shm") else 2048
    memory = (os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")) >> 20
    return max(SMALLEST_STORE_MB, min(1024, memory // 10, shm * 8 // 10))


def _require_capacity(session: Session, cpus: float, gpus: float, autoscaling: bool) -> Session:
    if not autoscaling:
        _refuse_shortage(
            "CPU", session.resources.get("CPU", 0.0), cpus, "runtime.num_cpus" if session.embedded else None
        )
        _refuse_shortage("GPU", session.resources.get("GPU", 0.0), gpus, None)
    return session


def _refuse_shortage(name: str, have: float, need: float, key: str | None) -> None:
    if have < need:
        raise UserError(
            f"Ray has too few {name}s for this job", key=key, found=f"{have:g} {name}", expected=f"at least {need:g}"
        )
