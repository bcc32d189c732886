"""The one file that branches on cpu | cuda | xla: where tensors live, how processes agree, what a step ends with.

CPU and CUDA run one process per device and agree through torch.distributed (gloo, NCCL), which the caller has set up.
XLA runs one process per host and SPMD over all devices: the batch is sharded over a mesh, so sums inside a step are
global already and nothing is reduced by hand.

Not here: what is computed (pathray.nn, recipes), which attention kernel serves a device (pathray.nn.attention).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
from collections.abc import Iterable, Mapping
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
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Device:
    """An accelerator kind, this process's torch device, and its place among the processes of the run.

    `rank` and `world_size` count processes: they share the data. `mesh` is the SPMD mesh of XLA.
    """

    kind: str
    torch_device: torch.device
    rank: int = 0
    world_size: int = 1
    mesh: Any = None

    @classmethod
    def of(cls, accelerator: str = "auto") -> Device:
        """The device of this process. `auto`: CUDA, else an XLA that PJRT_DEVICE announces, else the CPU.

        On CUDA the index is what Ray Train or LOCAL_RANK says. UserError when the accelerator is not there.
        """
        check_accelerator(accelerator, "accelerator")
        kind = _available() if accelerator == "auto" else accelerator
        if kind == "xla":
            return cls(kind, *_open_xla())
        if kind == "cuda" and not torch.cuda.is_available():
            raise UserError("no CUDA device is visible here", key="accelerator", found="cuda", expected="a GPU, or cpu")
        device = torch.device("cpu")
        if kind == "cuda":
            device = torch.device("cuda", _cuda_index())
            torch.cuda.set_device(device)
            torch.cuda.init()  # type: ignore[no-untyped-call]
            torch.backends.cudnn.allow_tf32 = False  # PyTorch has it on; float32 is float32 here
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
        """A CPU tensor `[B, …]` on the device; on XLA split along B over the mesh (over hosts too: each gives its own
        rows). UserError when B does not divide by this host's devices."""
        if self.kind != "xla" or tensor.ndim == 0:
            return tensor.to(self.torch_device, non_blocking=True)
        return _shard_xla(tensor, self.mesh, self.torch_device)

    def scalar(self, value: float | Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """A scalar on the device that travels as data: no wait on CUDA, no new graph on XLA."""
        return scalar(value, self.torch_device, dtype)

    def detached_views(self, views: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Views of larger tensors, to be copied to the host one by one. On XLA each of these copies would be a graph of
        its own; there they become tensors of their own, all made by the next `mark_step`."""
        return {name: view.clone() if self.kind == "xla" else view for name, view in views.items()}

    def _place(self, value: Any, whole: bool = False) -> Any:
        if isinstance(value, Mapping):
            return {name: self._place(v, whole) for name, v in value.items()}
        if isinstance(value, list | tuple):
            return [self._place(v, whole=True) for v in value] if any(map(_holds_data, value)) else value
        if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
            value = _tensor(value)
        if not isinstance(value, Tensor):
            return value
        if self.kind == "cuda" and value.device.type == "cpu":
            value = value.pin_memory()
        return value.to(self.torch_device, non_blocking=True) if whole else self.shard(value)

    # --- computing --------------------------------------------------------------------------------------------------

    def autocast(self, precision: str) -> contextlib.AbstractContextManager[Any]:
        """`fp32` (nothing is cast), `bf16` or `fp16` for matrix products; reductions stay in float32."""
        if precision not in PRECISIONS:
            expected = " or ".join(PRECISIONS)
            raise UserError("unknown precision", key="precision", found=precision, expected=expected)
        dtype = PRECISIONS[precision]
        if dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.kind, dtype=dtype)

    def seed(self, *parts: int | str) -> None:
        """Reseed torch's own generators from `parts` (seed, step, rank, micro, phase): dropout and stochastic depth.

        Equal parts, equal draws, in any process: the hash is not Python's.
        """
        value = stable_seed(*parts)
        torch.default_generator.manual_seed(value)  # torch.manual_seed looks for every accelerator, a millisecond long
        if self.kind == "cuda":
            torch.cuda.default_generators[self.torch_device.index].manual_seed(value)
        elif self.kind == "xla":
            import torch_xla

            torch_xla.manual_seed(value % 2**31)

    def deterministic(self) -> None:
        """Ask CUDA for bit-reproducible kernels, for the whole process; a CPU and XLA are so already."""
        if self.kind == "cuda":
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.backends.cudnn.benchmark = False
            torch.use_deterministic_algorithms(True)

    def mark_step(self) -> None:
        """The end of a micro-batch or a step: XLA sends off the graph that it has gathered, others do nothing."""
        if self.kind == "xla":
            import torch_xla

            torch_xla.sync()

    def synchronize(self) -> None:
        """Wait until everything asked for is computed. Never inside a step."""
        if self.kind == "cuda":
            torch.cuda.synchronize(self.torch_device)
        elif self.kind == "xla":
            import torch_xla

            torch_xla.sync(wait=True)

    # --- agreeing ---------------------------------------------------------------------------------------------------

    @property
    def reduces(self) -> bool:
        """Whether sums over the global batch need an all-reduce (several processes, no SPMD)."""
        return self.world_size > 1 and self.kind != "xla"

    def all_reduce_sum_(self, flat: Tensor, *, wait: bool = True) -> Any:
        """Sum over ranks, in place; with `wait=False` a handle whose `wait()` ends it. A no-op where one is alone."""
        if not self.reduces:
            return None
        return dist.all_reduce(flat, async_op=not wait)

    def flags(self, values: Iterable[float]) -> Tensor:
        """This process's few host numbers as a tensor to be summed: as they are where the loop all-reduces, already
        summed over hosts on XLA."""
        row = torch.tensor(list(values), dtype=torch.float32)
        if self.kind != "xla":
            return row.to(self.torch_device, non_blocking=True)
        import torch_xla.runtime as xr

        rows = torch.zeros(xr.addressable_runtime_device_count(), row.numel())
        rows[0] = row
        return self.shard(rows).sum(0)

    def broadcast_object(self, value: T, source: int = 0) -> T:
        """The value of rank `source`, on every rank."""
        if self.world_size == 1:
            return value
        self._assert_group()
        box = [value]
        dist.broadcast_object_list(box, src=source, device=self._group_device())
        return box[0]

    def gather_objects(self, value: T) -> list[T]:
        """The values of all ranks, in rank order, on every rank. Waits for the host: on cadence only."""
        if self.world_size == 1:
            return [value]
        self._assert_group()
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def broadcast_(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite tensors on the device with rank 0's."""
        if self.reduces:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def gather_sum_grad(self, x: Tensor) -> Tensor:
        """`[B, …]` of every rank → `[W·B, …]` in rank order; its backward **sums** the gradients of all ranks.

        So a loss that compares across ranks has, after the loop's sum over ranks, the gradient of one process with the
        whole batch (a gather that drops or averages them gives 1/W of it). On XLA `x` is global already.
        """
        if not self.reduces:
            return x
        gathered: Tensor = _GatherSumGrad.apply(x)  # type: ignore[no-untyped-call]
        return gathered

    def _group_device(self) -> torch.device | None:
        return self.torch_device if self.kind == "cuda" else None

    def _assert_group(self) -> None:
        assert dist.is_initialized(), "several processes need a torch.distributed group (on XLA hosts: gloo)"

    # --- looking ----------------------------------------------------------------------------------------------------

    def compile_count(self) -> int:
        """Graphs compiled so far by XLA; 0 elsewhere. Constant after the third step, or something makes new graphs."""
        if self.kind != "xla":
            return 0
        import torch_xla.debug.metrics as met

        return int(met.counter_value("UncachedCompile") or 0)

    def memory(self) -> dict[str, float]:
        """Memory in GiB: ``memory_gib`` and ``memory_peak_gib`` of the accelerator, or of this process on a CPU."""
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


def scalar(value: float | Tensor, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """A scalar on `device` that travels as data: no wait on CUDA, no new graph on XLA. For recipes and optimizers.

    It travels as a row of one: XLA makes a constant of a plain scalar that happens to be 0 or 1, and one input of two
    that happen to be equal, and each time that is another graph.
    """
    return torch.as_tensor(value, dtype=dtype).reshape(1).to(device, non_blocking=True).reshape(())


def stable_seed(*parts: int | str) -> int:
    """A 63-bit seed of integers and words, equal in every process and on every machine."""
    text = "\0".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


class _GatherSumGrad(torch.autograd.Function):
    """All-gather whose backward all-reduces the gradient and keeps this rank's rows."""

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


def _available() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "xla" if os.environ.get("PJRT_DEVICE") else "cpu"


def _cuda_index() -> int:
    """Ray Train announces its device in ACCELERATE_TORCH_DEVICE; torchrun gives LOCAL_RANK."""
    announced = os.environ.get("ACCELERATE_TORCH_DEVICE", "")
    if announced.startswith("cuda:"):
        return int(announced.removeprefix("cuda:"))
    return int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count()


def _open_xla() -> tuple[torch.device, int, int, Any]:
    """SPMD over all devices of all hosts: (device, host, hosts, mesh)."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # or XLA says with each graph that its partitioner will change
    try:
        import torch_xla
        import torch_xla.distributed.spmd as xs
        import torch_xla.runtime as xr
    except ImportError as e:
        expected = "the environment of constraints-xla.txt"
        raise UserError(f"torch_xla does not import: {e}", key="accelerator", found="xla", expected=expected) from e
    if not xr.is_spmd():
        xr.use_spmd()
    devices = xr.global_runtime_device_count()
    mesh = xs.Mesh(np.arange(devices), (devices,), ("data",))
    host, hosts = xr.process_index(), xr.process_count()
    join_hosts(host, hosts)
    return torch_xla.device(), host, hosts, mesh


def join_hosts(host: int, hosts: int) -> None:
    """A gloo group of XLA's hosts, for what they agree on besides the graph; each has the rank that XLA gave it.

    RANK and WORLD_SIZE are what the launcher gave, whose order may be another: its rank 0 is at MASTER_ADDR. UserError
    when it started another number of processes than XLA sees (each would then train for itself, as rank 0 of 1).
    """
    started = int(os.environ.get("WORLD_SIZE", hosts))
    if started != hosts:
        message = "XLA does not see as many hosts as there are workers"
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
            "the micro-batch of a host must share evenly over its devices",
            key="micro_batch",
            found=f"{tensor.shape[0]} over {local} devices",
            expected=f"a multiple of {local}",
        )
    spec = xs.ShardingSpec(mesh, ("data", *[None] * (tensor.ndim - 1)), minibatch=xr.process_count() > 1)
    placed: Tensor = xm.send_cpu_data_to_device(tensor, device, input_sharding=spec)[0]
    return placed
