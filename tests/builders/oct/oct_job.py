"""The whole job that pretrains on OCT, on generated volumes of a few persons: its keys, its data, how it is run."""

from __future__ import annotations

from pathlib import Path

from tests.builders.oct.opt_dicom import Scan, build_dicom
from tests.builders.oct.retina import layered_retina
from tests.builders.oct.scans import Scan as Listed
from tests.builders.oct.scans import cells_of, write_rows

WITHOUT_RAY = "scaling.workers=0"
PERSONS, HELD_OUT = 6, 2  # each with both eyes; the last ones are held out
BUDGET = 24
KEYS = (
    "data.image_size=[8,32,32]", "data.spacing_mm=[0.1,0.032,0.036]", "data.threads=1", "model.name=vit_micro",
    "model.patch_size=[2,8,8]", "model.pred_dim=48", "model.pred_depth=1", "optimization.global_batch=4",
    "optimization.batch_size_per_gpu=2", f"optimization.total_images={BUDGET}", "optimization.warmup=4",
    "optimization.lr=1e-3", "validation.every=8", "logging.log_every=4", "logging.save_every=8", "logging.mlflow=false",
    "checkpoint.latest_minutes=0", "scaling.accelerator=cpu", "scaling.cpus_per_worker=0.5",
    "runtime.worker_logs=false", "collapse.stop=false",
)  # fmt: skip


def write_data(folder: Path) -> None:
    """manifest.tsv, the volumes below it, and split.csv: persons 0 … 3 are trained on, 4 and 5 are held out."""
    rows, lines = [], ["path,group_id,split"]
    for number in range(2 * PERSONS):
        person, eye = str(number // 2), "RL"[number % 2]
        scan = Listed(person, eye, size=(8, 64, 48))
        path = folder / scan.path
        path.parent.mkdir(parents=True, exist_ok=True)
        written = Scan(laterality=eye, attributes={"SOPInstanceUID": f"1.2.{number + 1}"})
        path.write_bytes(build_dicom(layered_retina(8, 64, 48, shift_rows=number, seed=number), written))
        rows.append(cells_of(scan) | {"sop_instance_uid": f"1.2.{number + 1}"})
        lines.append(f"{scan.path},{person},{'val' if int(person) >= PERSONS - HELD_OUT else 'train'}")
    write_rows(folder / "manifest.tsv", rows)
    (folder / "split.csv").write_text("\n".join(lines) + "\n")


def command(output: Path, data: Path, *argv: str) -> list[str]:
    """The job's arguments: the tiny run, and `argv` on top."""
    inputs = (f"data.manifest={data}/manifest.tsv", f"data.split_file={data}/split.csv")
    return [*KEYS, *inputs, f"output={output}", *argv]


def pretrain(output: Path, data: Path, *argv: str) -> int:
    """The job in this process, through the Ray that is running unless `argv` has WITHOUT_RAY; its exit code."""
    from oct.config import CONFIGS_DIR
    from ray_jobs import pretrain_oct as job
    from ray_jobs.shell.cli import run_job

    return run_job(job.main, job.PretrainOctConfig, command(output, data, *argv), CONFIGS_DIR)
