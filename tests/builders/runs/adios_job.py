"""The whole ADIOS job on small archives of patches: its keys, how it is run, and its ranks without Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pathray.device import Device
from pathray.store.committed import list_committed

WITHOUT_RAY = "scaling.workers=0"
KEYS = (
    "arch=vit_tiny", "patch_size=8", "embed_dim=32", "depth=2", "num_heads=2", "mask_model_type=adios",
    "mask_model.channels=8", "student.head=[16,8]", "student.drop_path=0", "data.patch_px=32", "data.image_size=32",
    "crops.size=16", "global_batch=4", "total_iterations=4", "save_freq=2", "viz_freq=2", "lr=1e-3",
    "logging.log_every={iterations: 1}", "logging.mlflow=false", "optimization.precision=fp32",
    "optimization.warmup_iterations=1", "data.threads=1", "checkpoint.latest_minutes=0",
    "scaling.accelerator=cpu", "scaling.cpus_per_worker=0.5", "runtime.worker_logs=false",
)  # fmt: skip


def command(output: Path, data: Path | str, *argv: str) -> list[str]:
    """The job's arguments: the tiny run, and `argv` on top."""
    return [*KEYS, f"data_path={data}", f"output={output}", *argv]


def pretrain(output: Path, data: Path | str, *argv: str) -> int:
    """The job in this process, through the Ray that is running unless `argv` has WITHOUT_RAY; its exit code."""
    from adios.config import CONFIGS_DIR
    from ray_jobs import pretrain_adios as job
    from ray_jobs.shell.cli import run_job

    return run_job(job.main, job.PretrainAdiosConfig, command(output, data, *argv), CONFIGS_DIR)


def train_rank(device: Device, words: list[str]) -> Any:
    """One rank of the run that a job with these arguments has begun, on the plan in its folder; how it ended."""
    from adios.assembly import assemble
    from adios.config import CONFIGS_DIR
    from pathray.config.load import load_config
    from pathray.data.plan import Plan
    from pathray.run import train
    from ray_jobs import pretrain_adios as job

    config = job.resolve_config(load_config(job.PretrainAdiosConfig, words, configs_dir=CONFIGS_DIR).config)
    plan = Plan.open(f"{config.output}/plan")
    return train(assemble(config, plan, device.world_size), plan, str(config.output), device).end


def train_job(device: Device, job: Any) -> Any:
    """One rank of a job in place of its training: how it ended."""
    from pathray.data.plan import Plan
    from pathray.run import train

    plan = Plan.open(job.plan_path)
    parts = job.assemble(job.config, plan, device.world_size)
    return train(parts, plan, job.run_dir, device, settings=job.run_settings())


def checkpoints(run: Path) -> dict[int, str]:
    """Images seen → path of every committed checkpoint."""
    return {c.meta["images_seen"]: c.path for c in list_committed(str(run / "checkpoints"))}
