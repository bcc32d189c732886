"""What Ray Train sets up in its workers per accelerator: process groups on CPU and CUDA, the environment on XLA.

The one file that touches Ray Train's developer API (`Backend`, `BackendConfig`); see
tests/ray_jobs/train/test_backends.py.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from ray.train.backend import Backend, BackendConfig
from ray.train.v2.api.config import ScalingConfig as RayScaling

from pathray.errors import UserError

# libtpu takes the slice's shape from the machine's metadata unless it is told: one host of four chips
ONE_HOST = {"TPU_PROCESS_BOUNDS": "1,1,1", "TPU_CHIPS_PER_PROCESS_BOUNDS": "2,2,1", "CLOUD_TPU_TASK_ID": "0"}


@dataclass
class XlaConfig(BackendConfig):
    """One process per host, SPMD over its devices. `virtual_devices` > 0: as many of PJRT's CPU client. `alone`: on one
    host of a slice of several, which does not wait for the others."""

    pjrt_device: str = "TPU"
    virtual_devices: int = 0
    alone: bool = False

    @property
    def backend_cls(self) -> type[Backend]:
        return _XlaBackend


class _XlaBackend(Backend):
    """Sets what torch_xla reads when it is first imported, so it must run before any worker imports it."""

    share_cuda_visible_devices = False

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        environment = {"PJRT_DEVICE": backend_config.pjrt_device, "WORLD_SIZE": str(len(worker_group))}
        if backend_config.virtual_devices:
            environment["CPU_NUM_DEVICES"] = str(backend_config.virtual_devices)
        if backend_config.alone and backend_config.pjrt_device == "TPU":
            environment |= ONE_HOST
        if len(worker_group) > 1:
            environment |= worker_group.execute_single(0, _meeting_point)
        already = [
            worker_group.execute_single(rank, _prepare_xla, {**environment, "RANK": str(rank)})
            for rank in range(len(worker_group))
        ]
        assert not any(already), "torch_xla was imported before its environment was set"


def _prepare_xla(environment: dict[str, str]) -> bool:
    import sys

    os.environ.update(environment)
    return "torch_xla" in sys.modules


def _meeting_point() -> dict[str, str]:
    """Where this worker can be met by the others (pathray.device joins them there)."""
    import socket

    import ray

    with socket.socket() as s:
        s.bind(("", 0))
        return {"MASTER_ADDR": ray.util.get_node_ip_address(), "MASTER_PORT": str(s.getsockname()[1])}


def backend_config(accelerator: str, timeout_s: int, workers: int, *, alone: bool = False) -> BackendConfig:
    """The backend of a resolved accelerator. `alone`: one worker instead of several that could not be initialised.

    One worker on a CPU has nobody to meet: without a process group Ray Train's controller need not import torch.
    """
    if accelerator == "xla":
        on_cpu = os.environ.get("PJRT_DEVICE") == "CPU"
        devices = int(os.environ.get("CPU_NUM_DEVICES", "4")) if on_cpu else 0
        return XlaConfig(pjrt_device="CPU" if on_cpu else "TPU", virtual_devices=devices, alone=alone)
    if accelerator == "cpu" and workers == 1:
        return BackendConfig()
    from ray.train.torch import TorchConfig

    return TorchConfig(backend="nccl" if accelerator == "cuda" else "gloo", timeout_s=timeout_s)


def scaling_config(
    workers: int,
    resources: dict[str, float],
    accelerator: str,
    *,
    tpu_type: str | None = None,
    tpu_topology: str | None = None,
) -> RayScaling:
    """Ray Train's own scaling config. On several TPU hosts Ray reserves a slice, which it must be told the kind of:
    `tpu_type` like ``TPU-V5P`` and `tpu_topology` like ``2x2x2``."""
    on_tpu = accelerator == "xla" and resources.get("TPU", 0) > 0
    if on_tpu and workers > 1:
        for key, value, example in (("tpu_type", tpu_type, "TPU-V5P"), ("tpu_topology", tpu_topology, "2x2x2")):
            if value is None:
                message = "several TPU hosts need the type and topology of their slice"
                raise UserError(message, key=f"scaling.{key}", expected=f"for example {example}")
    return RayScaling(
        num_workers=workers,
        use_gpu=accelerator == "cuda",
        resources_per_worker=resources,
        placement_strategy="PACK" if accelerator != "xla" else "SPREAD",
        use_tpu=on_tpu,
        accelerator_type=tpu_type if on_tpu else None,
        topology=tpu_topology if on_tpu else None,
    )
