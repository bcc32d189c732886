"""The only file that branches on cpu | cuda | xla: placing tensors, communication between processes, ending a step.

CPU and CUDA run one process per device and communicate through torch.distributed (gloo, NCCL), which the caller sets
up. XLA runs one process per host and SPMD over all devices: the batch is sharded over a mesh, so sums inside a step are
already global and need no explicit reduction.

Not here: what is computed (pathray.nn, recipes), the choice of attention kernel (pathray.nn.attention).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor

from pathray.config.checks import check_accelerator
from pathray.errors import UserError

T = TypeVar("T")
Gather = Callable[[Tensor], Tensor]  # of the rows of all ranks
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Device:
    """An accelerator kind, this process's torch device, and its rank among the run's processes.

    `rank` and `world_size` count the processes that share the data. `mesh` is XLA's SPMD mesh.
    """

    kind: str
    torch_device: torch.device
    rank: int = 0
    world_size: int = 1
    mesh: Any = None

    @classmethod
    def of(cls, accelerator: str = "auto") -> Device:
        """The device of this process. `auto`: CUDA, else XLA if PJRT_DEVICE is set, else the CPU.

        On CUDA, Ray Train or LOCAL_RANK gives the index. UserError if the accelerator is not available.
        """
        check_accelerator(accelerator, "accelerator")
        kind = available_kind() if accelerator == "auto" else accelerator
        if kind == "xla":
            return cls(kind, *_open_xla())
        if kind == "cuda" and not torch.cuda.is_available():
            raise UserError("no CUDA device is visible", key="accelerator", found="cuda", expected="a GPU, or cpu")
        device = torch.device("cpu")
        if kind == "cuda":
            device = torch.device("cuda", _cuda_index())
            torch.cuda.set_device(device)
            torch.cuda.init()  # type: ignore[no-untyped-call]
            torch.backends.cudnn.allow_tf32 = False  # on by default in PyTorch; float32 must mean float32
        rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        return cls(kind, device, rank, world)

    # --- data -------------------------------------------------------------------------------------------------------

    def to_device(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Arrays as tensors on the device: pinned and without a wait on CUDA, sharded along their first axis on XLA.

        Lists and mappings of arrays or tensors (ragged bags, groups of them) stay what they are, at any depth; what is
        in a list is neither cut nor padded, so on XLA every device of the mesh has the whole of it. Anything else
        (strings, numbers) passes through.
        """
        return {name: self._place(value) for name, value in batch.items()}

    def shard(self, tensor: Tensor) -> Tensor:
        """A CPU tensor `[B, …]` on the device; on XLA split along B over the mesh (each host contributes its own rows).
        UserError if B is not a multiple of this host's devices."""
        if self.kind != "xla" or tensor.ndim == 0:
            return tensor.to(self.torch_device, non_blocking=True)
        return _shard_xla(tensor, self.mesh, self.torch_device)

    def local_shards(self, tensors: Sequence[Tensor]) -> list[list[npt.NDArray[Any]]]:
        """Of each tensor `[B, …]` that `shard` placed, the rows that are on each device of this process. Waits until
        they are placed; on XLA nothing is computed, so that no graph is compiled."""
        if self.kind != "xla":
            return [[tensor.cpu().numpy()] for tensor in tensors]
        return _shards_xla(tensors, self.local_devices)

    def scalar(self, value: float | Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """A scalar on the device, passed as data: no wait on CUDA, no new graph on XLA."""
        return scalar(value, self.torch_device, dtype)

    def detached_views(self, views: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Views of larger tensors, ready to be copied to the host one by one. On XLA each such copy would need its own
        graph, so the views become separate tensors, all computed at the next `mark_step`."""
        return {name: view.clone() if self.kind == "xla" else view for name, view in views.items()}

    def _place(self, value: Any, whole: bool = False) -> Any:
        if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
            value = _tensor(value)
        elif isinstance(value, list | tuple):
            return [self._place(v, whole=True) for v in value] if any(map(_holds_data, value)) else value
        elif isinstance(value, Mapping):
            return {name: self._place(v, whole) for name, v in value.items()}
        if not isinstance(value, Tensor):
            return value
        if self.kind == "cuda" and value.device.type == "cpu":
            value = value.pin_memory()
        return value.to(self.torch_device, non_blocking=True) if whole else self.shard(value)

    # --- computing --------------------------------------------------------------------------------------------------

    def autocast(self, precision: str) -> contextlib.AbstractContextManager[Any]:
        """Autocast context: `fp32` (no casts), or `bf16` or `fp16` for matrix products; reductions stay in float32."""
        if precision not in PRECISIONS:
            expected = " or ".join(PRECISIONS)
            raise UserError("unknown precision", key="precision", found=precision, expected=expected)
        dtype = PRECISIONS[precision]
        if dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.kind, dtype=dtype)

    def seed(self, *parts: int | str) -> None:
        """Reseed torch's generators from `parts` (seed, step, rank, micro, phase), for dropout and stochastic depth.

        Equal parts give equal draws in any process, since Python's own hash is not used.
        """
        value = stable_seed(*parts)
        torch.default_generator.manual_seed(value)  # torch.manual_seed takes a millisecond to look for accelerators
        if self.kind == "cuda":
            torch.cuda.default_generators[self.torch_device.index].manual_seed(value)
        elif self.kind == "xla":
            import torch_xla

            torch_xla.manual_seed(value % 2**31)

    def deterministic(self) -> None:
        """Use bit-reproducible CUDA kernels in the whole process; CPU and XLA are always reproducible."""
        if self.kind == "cuda":
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.backends.cudnn.benchmark = False
            torch.use_deterministic_algorithms(True)

    def mark_step(self) -> None:
        """Mark the end of a micro-batch or step: XLA launches the graph that it has traced, others do nothing."""
        if self.kind == "xla":
            import torch_xla

            torch_xla.sync()

    def synchronize(self) -> None:
        """Wait until all submitted work is done. Never call it inside a step."""
        if self.kind == "cuda":
            torch.cuda.synchronize(self.torch_device)
        elif self.kind == "xla":
            import torch_xla

            torch_xla.sync(wait=True)

    # --- communicating --------------------------------------------------------------------------------------------

    @property
    def reduces(self) -> bool:
        """Whether sums over the global batch need an all-reduce (several processes, no SPMD)."""
        return self.world_size > 1 and self.kind != "xla"

    @property
    def runs_ahead(self) -> bool:
        """Whether this process runs ahead of its device, so that reading a tensor waits."""
        return self.kind != "cpu"

    @property
    def local_devices(self) -> int:
        """Devices of this process that share a micro-batch, which must be a multiple of their number."""
        if self.kind != "xla":
            return 1
        import torch_xla.runtime as xr

        return int(xr.addressable_runtime_device_count())

    def all_reduce_sum_(self, flat: Tensor, *, wait: bool = True) -> Any:
        """Sum over ranks in place; with `wait=False`, returns a handle with `wait()`. No-op in a single process."""
        if not self.reduces:
            return None
        return dist.all_reduce(flat, async_op=not wait)

    def flags(self, values: Iterable[float]) -> Tensor:
        """A few numbers of this process as a tensor to be summed over ranks; on XLA already summed over hosts."""
        row = torch.tensor(list(values), dtype=torch.float32)
        if self.kind != "xla":
            return row.to(self.torch_device, non_blocking=True)
        import torch_xla.runtime as xr

        rows = torch.zeros(xr.addressable_runtime_device_count(), row.numel())
        rows[0] = row
        return self.shard(rows).sum(0)

    def broadcast_object(self, value: T, source: int = 0) -> T:
        """The value of rank `source`, returned on every rank."""
        if self.world_size == 1:
            return value
        self._assert_group()
        box = [value]
        dist.broadcast_object_list(box, src=source, device=self._group_device())
        return box[0]

    def gather_objects(self, value: T) -> list[T]:
        """The values of all ranks, in rank order, returned on every rank. It blocks, so call it rarely."""
        if self.world_size == 1:
            return [value]
        self._assert_group()
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def broadcast_(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite device tensors with those of rank 0."""
        if self.reduces:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def gather_sum_grad(self, x: Tensor) -> Tensor:
        """`[B, …]` of every rank → `[W·B, …]` in rank order; its backward **sums** the gradients of all ranks.

        After the loop's sum over ranks, a loss that compares samples across ranks then has the same gradient as one
        process with the whole batch (a gather that drops or averages gradients gives 1/W of it). On XLA `x` is already
        global.
        """
        if not self.reduces:
            return x
        gathered: Tensor = _GatherSumGrad.apply(x)  # type: ignore[no-untyped-call]
        return gathered

    def _group_device(self) -> torch.device | None:
        return self.torch_device if self.kind == "cuda" else None

    def _assert_group(self) -> None:
        assert dist.is_initialized(), "several processes need a torch.distributed group (on XLA hosts: gloo)"

    # --- inspecting ---------------------------------------------------------------------------------------------------

    def compile_count(self) -> int:
        """Number of graphs compiled by XLA so far; 0 elsewhere. It should be constant after the third step."""
        if self.kind != "xla":
            return 0
        import torch_xla.debug.metrics as met

        return int(met.counter_value("UncachedCompile") or 0)

    def memory(self) -> dict[str, float]:
        """Memory in GiB: ``memory_gib`` and ``memory_peak_gib`` of the accelerator; on a CPU this process's peak."""
        gib = float(1 << 30)
        if self.kind == "cuda":
            now, peak = torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated()
            return {"memory_gib": now / gib, "memory_peak_gib": peak / gib}
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return {"memory_peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / gib}

    def describe(self) -> str:
        """One line for the log."""
        name = torch.cuda.get_device_name(self.torch_device) if self.kind == "cuda" else self.kind
        devices = f", {self.mesh.size()} devices" if self.mesh is not None else ""
        return f"{name}{devices}, rank {self.rank} of {self.world_size}, {torch.get_num_threads()} threads"


def keep_local(x: Tensor) -> Tensor:
    """In place of `Device.gather_sum_grad` where `x` is the whole batch: one process, or one program on all devices."""
    return x


def scalar(value: float | Tensor, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """A scalar on `device`, passed as data: no wait on CUDA, no new graph on XLA. For recipes and optimizers.

    It is passed as a row of one. XLA turns plain scalars that are 0 or 1 into constants, and two equal scalars into one
    input, and each of these cases compiles another graph.
    """
    return torch.as_tensor(value, dtype=dtype).reshape(1).to(device, non_blocking=True).reshape(())


def stable_seed(*parts: int | str) -> int:
    """A 63-bit seed computed from integers and words, equal in every process and on every machine."""
    text = "\0".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


class _GatherSumGrad(torch.autograd.Function):
    """All-gather; its backward all-reduces the gradient and keeps this rank's rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x.contiguous())
        ctx.rows = x.shape[0]
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        summed = grads[0].contiguous().clone()
        dist.all_reduce(summed)
        first = dist.get_rank() * ctx.rows
        return summed[first : first + ctx.rows]


def _holds_data(value: Any) -> bool:
    return isinstance(value, np.ndarray | Tensor | Mapping | list | tuple)


def _tensor(array: npt.NDArray[Any]) -> Tensor:
    return torch.from_numpy(array if array.flags.writeable and array.flags.c_contiguous else array.copy())


def available_kind() -> str:
    """What ``auto`` means on this machine; opens no device."""
    if torch.cuda.is_available():
        return "cuda"
    return "xla" if os.environ.get("PJRT_DEVICE") else "cpu"


def _cuda_index() -> int:
    """The CUDA index: Ray Train sets ACCELERATE_TORCH_DEVICE, torchrun sets LOCAL_RANK."""
    announced = os.environ.get("ACCELERATE_TORCH_DEVICE", "")
    if announced.startswith("cuda:"):
        return int(announced.removeprefix("cuda:"))
    return int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count()


def _open_xla() -> tuple[torch.device, int, int, Any]:
    """SPMD over all devices of all hosts: (device, host, hosts, mesh)."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # hides XLA's warning about its partitioner at every graph
    try:
        import torch_xla
        import torch_xla.distributed.spmd as xs
        import torch_xla.runtime as xr
    except ImportError as e:
        expected = "the environment of constraints-xla.txt"
        raise UserError(f"cannot import torch_xla: {e}", key="accelerator", found="xla", expected=expected) from e
    if not xr.is_spmd():
        xr.use_spmd()
    devices = xr.global_runtime_device_count()
    mesh = xs.Mesh(np.arange(devices), (devices,), ("data",))
    host, hosts = xr.process_index(), xr.process_count()
    join_hosts(host, hosts)
    return torch_xla.device(), host, hosts, mesh


def join_hosts(host: int, hosts: int) -> None:
    """Create a gloo group of XLA's hosts for communication outside the graph, with XLA's ranks.

    The launcher's RANK may be in a different order: its rank 0 is at MASTER_ADDR. UserError if the launcher started a
    different number of processes than XLA sees (each would then train alone, as rank 0 of 1).
    """
    started = int(os.environ.get("WORLD_SIZE", hosts))
    if started != hosts:
        message = "the number of workers and the number of hosts that XLA sees differ"
        raise UserError(message, key="scaling.workers", found=started, expected=hosts)
    if hosts > 1 and not dist.is_initialized():
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = dist.TCPStore(  # type: ignore[attr-defined]
            address, port, hosts, is_master=os.environ["RANK"] == "0"
        )
        dist.init_process_group("gloo", store=store, rank=host, world_size=hosts)
    assert hosts == 1 or dist.get_rank() == host, "the hosts' group numbers them as XLA does"


def _shard_xla(tensor: Tensor, mesh: Any, device: torch.device) -> Tensor:
    import torch_xla.core.xla_model as xm
    import torch_xla.distributed.spmd as xs
    import torch_xla.runtime as xr

    local = xr.addressable_runtime_device_count()
    if tensor.shape[0] % local:
        raise UserError(
            "the micro-batch must divide evenly over the host's devices",
            key="micro_batch",
            found=f"{tensor.shape[0]} over {local} devices",
            expected=f"a multiple of {local}",
        )
    spec = xs.ShardingSpec(mesh, ("data", *[None] * (tensor.ndim - 1)), minibatch=xr.process_count() > 1)
    placed: Tensor = xm.send_cpu_data_to_device(tensor, device, input_sharding=spec)[0]
    return placed


def _shards_xla(tensors: Sequence[Tensor], devices: int) -> list[list[npt.NDArray[Any]]]:
    """A tensor without a sharding is whole on every device."""
    import torch_xla

    split = [bool(torch_xla._XLAC._get_xla_sharding_spec(tensor)) for tensor in tensors]
    found = iter(torch_xla._XLAC._get_local_shards([t for t, is_split in zip(tensors, split, strict=True) if is_split]))
    return [
        [rows.numpy() for rows, _ in next(found)] if is_split else [tensor.cpu().numpy()] * devices
        for tensor, is_split in zip(tensors, split, strict=True)
    ]
