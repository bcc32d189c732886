"""The doctor's checks of a machine's accelerators (CUDA, TPU through XLA), with a small matrix product on each.

Each device runtime is started in its own process, so that one that hangs or aborts does not end the doctor.
"""

from __future__ import annotations

import glob
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping

from ray_jobs.checks.nodes import FAIL, OK, WARN, Check

START_XLA = """
import torch, torch_xla, torch_xla.runtime as xr
d = torch_xla.device()
x = torch.ones(8, 8, device=d) @ torch.ones(8, 8, device=d)
assert float(x.sum().cpu()) == 512.0
print("started", xr.device_type(), xr.global_runtime_device_count())
"""
START_CUDA = """
import torch
for i in range(torch.cuda.device_count()):
    x = torch.ones(8, 8, device=f"cuda:{i}")
    assert float((x @ x).sum()) == 512.0
    p = torch.cuda.get_device_properties(i)
    print(f"{p.name} {p.total_memory / 2**30:.0f} GiB (sm {p.major}.{p.minor})", end="; ")
"""
REMOVED_XLA_FLAG = "--xla_gpu_enable_triton_softmax_fusion"
ONE_CHIP = {"TPU_VISIBLE_CHIPS": "0", "TPU_CHIPS_PER_PROCESS_BOUNDS": "1,1,1", "TPU_PROCESS_BOUNDS": "1,1,1"}
Start = Callable[[Mapping[str, str]], tuple[int, str]]  # environment -> exit code, output


def torch_on_cpu() -> list[Check]:
    import torch

    total = float((torch.ones(8, 8) @ torch.ones(8, 8)).sum())
    if total != 512.0:
        return [Check("torch", FAIL, f"8×8 product sums to {total}", "reinstall torch")]
    return [Check("torch", OK, f"{torch.__version__}, {torch.get_num_threads()} threads")]


def cuda(wanted: bool) -> list[Check]:
    import torch

    if shutil.which("nvidia-smi") is None and not glob.glob("/dev/nvidia[0-9]*"):
        found, advice = "no NVIDIA device", "run on a GPU node, or set scaling.accelerator=cpu"
        return [Check("cuda", FAIL, found, advice)] if wanted else []
    if torch.version.cuda is None:
        advice = "this torch is a CPU build: pip install torch from the index for your CUDA version"
        return [Check("cuda", FAIL, "the machine has a GPU, but torch cannot use it", advice)]
    code, output = _run(START_CUDA, {})
    if code or not output.strip():
        advice = (
            "compare the driver's CUDA version (nvidia-smi) with torch.version.cuda; check that no other process "
            "holds the GPU"
        )
        return [Check("cuda", FAIL, _last_line(output) or "no device visible to torch", advice)]
    return [Check("cuda", OK, output.strip().rstrip(";"))]


def tpu(wanted: bool, start: Start | None = None) -> list[Check]:
    """Start the XLA runtime, retry once, then try one worker only, to tell one bad chip from a bad machine."""
    chips = sorted(glob.glob("/dev/accel[0-9]*") + glob.glob("/dev/vfio/[0-9]*"))
    present = bool(chips) or os.environ.get("PJRT_DEVICE") == "TPU"
    if not present and not wanted:
        return []
    start = start or (lambda environment: _run(START_XLA, environment))
    environment = {"PJRT_DEVICE": os.environ.get("PJRT_DEVICE", "TPU")}
    for attempt in ("", " at the second attempt"):
        code, output = start(environment)
        if code == 0:
            return [Check("tpu", OK if not attempt else WARN, _last_line(output) + attempt)]
    found, advice = _tpu_failure(output)
    if "install" in advice:
        return [Check("tpu", FAIL, found, advice)]
    code, _ = start({**environment, **ONE_CHIP})
    if code == 0:
        advice = f"it starts with one worker, so use scaling.workers=1 for now; then: {advice}"
    return [Check("tpu", FAIL, found, advice)]


def _tpu_failure(output: str) -> tuple[str, str]:
    """(what was found, what to do) for the known failures of TPU machines."""
    found = _last_line(output)
    restart = "gcloud compute tpus tpu-vm stop NAME --zone=ZONE, then start"
    text = output.lower()
    if "no module named" in text:
        return (
            found,
            "install it on all hosts: gcloud compute tpus tpu-vm ssh NAME --worker=all --command='pip install …'",
        )
    if "operation not permitted" in text or "permission denied" in text:
        return found, f"this user may not open the device: {restart}; in a container add --privileged"
    if "already in use" in text or "device or resource busy" in text:
        return found, "another process holds the chips: end it (sudo lsof /dev/accel*), or wait for its job"
    if "timed out" in text:
        return found, "not all hosts started: run the job on all hosts of the TPU slice at once (--worker=all)"
    return found, f"restart the TPU: {restart}"


def environment() -> list[Check]:
    """Settings of the environment that XLA no longer knows, or that change what is computed; nothing without one."""
    found = []
    if REMOVED_XLA_FLAG in os.environ.get("XLA_FLAGS", ""):
        advice = f"remove {REMOVED_XLA_FLAG} from XLA_FLAGS: an XLA that does not know a flag ends the process"
        found.append(Check("XLA_FLAGS", WARN, f"{REMOVED_XLA_FLAG} was removed from XLA", advice))
    value = os.environ.get("XLA_USE_BF16", "0")
    if value.lower() not in ("", "0", "false"):
        advice = "unset XLA_USE_BF16; optimization.precision=bf16 computes in bf16 and keeps the weights in float32"
        what = "every float32 becomes bf16, weights, losses and the optimizer's state too"
        found.append(Check("XLA_USE_BF16", WARN, f"set to {value}: {what}", advice))
    return found


def list_checks(accelerator: str) -> list[tuple[str, Callable[[], list[Check]]]]:
    return [
        ("torch", torch_on_cpu),
        ("environment", environment),
        ("cuda", lambda: cuda(accelerator == "cuda")),
        ("tpu", lambda: tpu(accelerator == "xla")),
    ]


def _run(code: str, environment: Mapping[str, str], timeout: float = 180.0) -> tuple[int, str]:
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=timeout,
        )
    except subprocess.TimeoutExpired:
        return 124, f"starting the device timed out after {timeout:.0f} s"
    return done.returncode, done.stdout if done.returncode == 0 else done.stderr


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""
