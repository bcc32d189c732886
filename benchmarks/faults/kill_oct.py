"""Kill OCT pretraining on generated volumes of full size, with one worker and with two, and compare all of its runs.

    python benchmarks/faults/kill_oct.py [kills=4] [seed=0] [minutes=20] [workers=1,2] [folder=PATH]

Six volumes of 512 × 496 × 512 and 512 × 1,024 × 512 voxels, uncompressed and HTJ2K, of which one has a damaged B-scan;
a small ViT on a grid of 32 × 192 × 192. A kill is SIGKILL for a training worker, for all processes at once, or for all
while a checkpoint is being written, at a drawn number of volumes; the same command starts again (see kills.py). The
result must be that of an undisturbed run, bit for bit. Runs of different numbers of workers must see the same volumes
at the same steps: the plan and what was replaced where are equal, and so are the losses of each step, up to the
rounding of a sum.
Exit code 1 where something is wrong. Linux only; 2 GB of disk; 25 minutes on two cores.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
from pydicom import uid

from benchmarks.faults import kill_checks as checks
from benchmarks.faults.kill_runs import BATCH, command_of
from benchmarks.faults.kills import attempt, draw
from oct.dicom.codecs import END_OF_IMAGE
from pathray.store.committed import list_committed
from tests.builders.oct.opt_dicom import Scan, build_dicom
from tests.builders.oct.retina import layered_retina
from tests.builders.oct.scans import Scan as Listed
from tests.builders.oct.scans import cells_of, write_rows

KINDS = ("worker", "tree", "save")
STEPS_PER_KILL = 3
SIZES = ((512, 496, 512), (512, 496, 512), (512, 1024, 512))  # B-scans, depth, along a B-scan; by turns
SYNTAXES = (uid.ExplicitVRLittleEndian, uid.HTJ2KLossless)
VOLUMES, DAMAGED, BLOCK = 6, 3, 64  # a volume of HTJ2K; B-scans that are made at once, and then repeated in mirror
EXTENT_MM = (6.0, 1.9, 6.0)
ROUNDING = 1e-5  # of a loss, relative
KEYS = (
    "data.image_size=[32,192,192]", "data.spacing_mm=[0.19,0.01,0.032]", "data.threads=1", "model.name=vit_micro",
    "model.pred_dim=96", "model.pred_depth=2", f"optimization.global_batch={BATCH}", "optimization.lr=1e-3",
    "optimization.batch_size_per_gpu=2", "optimization.warmup=4", "logging.log_every={iterations: 1}",
    "logging.mlflow=false", f"logging.save_every={6 * BATCH}", "checkpoint.latest_minutes=0", "collapse.stop=false",
    "scaling.accelerator=cpu", "scaling.cpus_per_worker=0.5", "runtime.worker_logs=false",
    "data.max_corrupt_fraction=0.9",
)  # fmt: skip


def main(argv: list[str]) -> int:
    options = {"kills": "4", "seed": "0", "minutes": "20", "workers": "1,2", "folder": ""}
    given = {name: value for name, _, value in (word.partition("=") for word in argv)}
    if unknown := set(given) - set(options):
        raise SystemExit(f"{__doc__}\nunknown: {', '.join(sorted(unknown))}")
    options |= given
    folder = Path(options["folder"] or tempfile.mkdtemp(prefix="pathray-kills-oct-")).resolve()
    ray_folder = tempfile.mkdtemp(prefix="kills-", dir="/tmp")  # short enough for Ray's sockets
    kills = draw(int(options["kills"]), int(options["seed"]), STEPS_PER_KILL, KINDS)
    steps = STEPS_PER_KILL * (len(kills) + 2)
    words = [*KEYS, f"data.manifest={write_volumes(folder / 'data')}", f"optimization.total_images={steps * BATCH}"]
    counts, right = [int(n) for n in options["workers"].split(",")], True
    try:
        for workers in counts:
            command, own = command_of("oct", words, workers), folder / f"w{workers}"
            own.mkdir(parents=True, exist_ok=True)
            right &= attempt(f"oct, W = {workers}", command, own, kills, float(options["minutes"]), ray_folder)
    finally:
        shutil.rmtree(ray_folder, ignore_errors=True)
    for workers in counts[1:]:
        problems = order_problems(folder / f"w{counts[0]}" / "undisturbed", folder / f"w{workers}" / "killed")
        print(f"W = {counts[0]} and, with kills, W = {workers}:", *(problems or ["same volumes at the same steps"]))
        right &= not problems
    if right and not options["folder"]:
        shutil.rmtree(folder)
    else:
        print(f"the runs are in {folder}")
    return 0 if right else 1


def write_volumes(folder: Path) -> str:
    """The volumes with a manifest; its path."""
    rows = []
    for number in range(VOLUMES):
        frames, depth, columns = size = SIZES[number % len(SIZES)]
        dz, dy, dx = (mm / n for mm, n in zip(EXTENT_MM, size, strict=True))
        scan = Listed(str(number), size=size, spacing_mm=(dz, dy, dx), uid=f"1.2.{number + 1}")
        block = layered_retina(BLOCK, depth, columns, shift_rows=8 * number, seed=number)
        volume = np.concatenate([block, block[::-1]] * (frames // BLOCK // 2))
        written = Scan(
            spacing_mm=scan.spacing_mm, syntax=SYNTAXES[number % 2], attributes={"SOPInstanceUID": scan.uid}
        )  # fmt: skip
        path = folder / scan.path
        path.parent.mkdir(parents=True, exist_ok=True)
        content = bytearray(build_dicom(volume, written))
        if number == DAMAGED:  # a B-scan in the middle has no end
            at = content.index(END_OF_IMAGE, len(content) // 2)
            content[at : at + 2] = bytes(2)
        path.write_bytes(content)
        rows.append(cells_of(scan))
    return write_rows(folder / "manifest.tsv", rows)


def order_problems(one: Path, other: Path) -> list[str]:
    """What shows that two runs did not see the same volumes at the same steps. Prints how far their losses are apart,
    and as a measure how much the loss changes from step to step."""
    plans = [plans_of(run) for run in (one, other)]
    problems = [] if plans[0] == plans[1] and len(plans[0]) == 1 else [f"the plans differ: {plans}"]
    results = [checks.result_of(run) for run in (one, other)]
    if results[0]["quarantine"] != results[1]["quarantine"]:
        problems.append("other units were replaced")
    losses = [np.array([row["loss"] for row in result["metrics"]]) for result in results]
    apart, change = np.abs(losses[0] / losses[1] - 1).max(), np.abs(np.diff(losses[0]) / losses[0][1:]).min()
    print(f"losses of a step are apart by at most {apart:.1e} of them; from step to step by at least {change:.1e}")
    return [*problems, *([] if apart < ROUNDING else [f"losses are apart by {apart:.1e}"])]


def plans_of(run: Path) -> set[str]:
    """The digest of the plan in each of a run's checkpoints."""
    kept = list_committed(str(run / "checkpoints"))
    return {str(found.meta["identity"]["values"]["plan"]) for found in kept}


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
