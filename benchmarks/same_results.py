"""Small runs of every science: compare their results with those of another checkout, bit for bit.

    python benchmarks/same_results.py save=before.json tree=OTHER_CHECKOUT
    python benchmarks/same_results.py expect=before.json [tree=.] [begin=OTHER_CHECKOUT]

For a change of structure, which must not change a result. Each science trains through Ray with one worker, with two
workers, and with one worker that is stopped halfway and resumed. Then anchors and features are made with the encoders.
`tree` is the checkout whose code runs. With `begin`, that checkout trains the first half of each stopped run, and
`tree` resumes it. The inputs are generated once, in `folder`; both calls must use the same one. Prints a line per
result; exit code 1 when one differs. Four minutes on two cores.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.faults import kill_checks as checks  # noqa: E402
from benchmarks.faults.kill_runs import BATCH, adios_words, ijepath_words  # noqa: E402

STEPS, HALF = 24, 8  # of each run; steps after which the stopped one is asked to end
OWN_RAY = ("runtime.address=local",)
REGRESSION = (
    "data.target_dim=3", "data.image_size=32", "data.threads=1", "data.ahead=1", "model.backbone=vit_tiny",
    "train.batch_size=2", "train.grad_accum_steps=1", f"train.images={STEPS * BATCH}", "train.lr=1e-3", "eval.every=16",
    f"train.global_batch={BATCH}", "logging.mlflow=false", "logging.log_every=4", "checkpoint.latest_every=8",
    "scaling.accelerator=cpu", "scaling.cpus_per_worker=0.5", "logging.run_name=run", "eval.resamples=20",
)  # fmt: skip


def inputs(folder: Path, tree: Tree) -> dict[str, list[str]]:
    """The words of each science's training job. Writes the inputs that they name, unless they exist."""
    made = folder / "words.json"
    if not made.exists():
        from tests.builders.expression import write_images

        words = {name: of(folder / name, STEPS) for name, of in (("ijepath", ijepath_words), ("adios", adios_words))}
        table = write_images(folder / "images")
        split = folder / "split.csv"
        tree.job(
            "ray_jobs.make_splits", f"table={table}", f"output={split}", "target_dim=3", "fractions=[0.5,0.25,0.25]"
        )
        words["regression"] = [*REGRESSION, f"data.table={table}", f"data.split={split}"]
        made.write_text(json.dumps(words))
    found: dict[str, list[str]] = json.loads(made.read_text())
    return found


class Tree:
    """A checkout whose jobs are run."""

    def __init__(self, path: str) -> None:
        self.path = Path(path).resolve()
        self.environment = {**os.environ, "PYTHONPATH": str(self.path), "OMP_NUM_THREADS": "1"}

    def start(self, module: str, *words: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", module, *words]
        return subprocess.Popen(
            command, cwd=self.path, env=self.environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    def job(self, module: str, *words: str) -> None:
        """Run a job to its end. SystemExit with its output when it fails."""
        process = self.start(module, *words)
        said, _ = process.communicate()
        if process.returncode:
            raise SystemExit(f"{module} in {self.path} ended with {process.returncode}:\n{said[-3000:]}")

    def stopped(self, run: Path, module: str, *words: str) -> None:
        """Run a job and ask it to stop after HALF steps."""
        process = self.start(module, *words)
        while process.poll() is None and (checks.newest_row(run) or {}).get("images_seen", 0) < HALF * BATCH:
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate()
        seen = (checks.newest_row(run) or {}).get("images_seen", 0)
        if process.returncode or not HALF * BATCH <= seen < STEPS * BATCH:
            raise SystemExit(f"{module} ended with {process.returncode} after {seen} images:\n{said[-3000:]}")


def job_of(science: str, output: Path) -> tuple[str, list[str], Path]:
    """The training job of a science, its words for an output, and the run's folder."""
    if science == "regression":
        return "ray_jobs.train_regression", [f"output={output}"], output / "run"
    return f"ray_jobs.pretrain_{science}", [f"output={output}"], output


def trained(tree: Tree, begin: Tree, words: dict[str, list[str]], folder: Path) -> Iterator[tuple[str, Any]]:
    """Results of every training, by name."""
    for science in words:
        for name, workers, stop in (("W=1", 1, False), ("W=2", 2, False), ("resumed", 1, True)):
            module, output, run = job_of(science, folder / f"{science}-{name}")
            mine = [*words[science], *OWN_RAY, f"scaling.workers={workers}", *output]
            if stop:
                begin.stopped(run, module, *mine)
            tree.job(module, *mine)
            for what, result in checks.result_of(run).items():
                yield f"{science} {name} {what}", result if isinstance(result, str) else digest(result)
            metrics = run / "metrics.json"
            if metrics.exists():
                yield f"{science} {name} report", digest(judged(json.loads(metrics.read_text())))


def judged(report: dict[str, Any]) -> dict[str, Any]:
    """The figures of a regression's report, without names, times and seals."""
    return {name: report[name] for name in ("val", "test", "baselines", "splits", "per_gene") if name in report}


def made_with(tree: Tree, slides: Path, folder: Path) -> Iterator[tuple[str, Any]]:
    """Anchors of the I-JEPATH run, and features of its slides by its encoder."""
    run = folder / "ijepath-W=1"
    yield "anchors", digest_of_tables(run / "indexes")
    bags = folder / "bags"
    tree.job(
        "ray_jobs.extract_features", f"encoders=[{run / 'encoder'}]", f"slides={slides}", f"output={bags}",
        "min_success_fraction=0", "read_timeout_s=60", *OWN_RAY,
    )  # fmt: skip
    yield "features", digest_of_bags(bags)


def digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def digest_of_tables(folder: Path) -> str:
    """Digest of the columns of all anchor tables below a folder."""
    import pyarrow.parquet as pq

    tables = [p for p in sorted(folder.rglob("*.parquet")) if p.name != "slide_metadata.parquet"]
    assert tables, f"no tables in {folder}"
    return digest([pq.read_table(path).to_pydict() for path in tables])


def digest_of_bags(folder: Path) -> str:
    """Digest of the features and coordinates of all bags below a folder."""
    import h5py

    found = hashlib.sha256()
    bags = sorted(folder.rglob("*.h5"))
    assert bags, f"no bags in {folder}"
    for path in bags:
        with h5py.File(path) as bag:
            for name in ("features", "coords"):
                found.update(f"{path.name} {name} {bag[name].shape}".encode() + bag[name][()].tobytes())
    return found.hexdigest()


def main(argv: list[str]) -> int:
    options = {"save": "", "expect": "", "tree": str(ROOT), "begin": "", "folder": "", "science": ""}
    given = {name: value for name, _, value in (word.partition("=") for word in argv)}
    if unknown := set(given) - set(options):
        raise SystemExit(f"{__doc__}\nunknown: {', '.join(sorted(unknown))}")
    options |= given
    tree = Tree(options["tree"])
    base = Path(options["folder"] or Path(tempfile.gettempdir()) / "pathray-same-results")
    base.mkdir(parents=True, exist_ok=True)
    words = inputs(base, tree)
    words = {name: words[name] for name in words if options["science"] in ("", name)}
    expected = json.loads(Path(options["expect"]).read_text()) if options["expect"] else {}
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="same-", dir="/tmp") as folder:  # short enough for Ray's sockets
        begin = Tree(options["begin"]) if options["begin"] else tree
        results = [trained(tree, begin, words, Path(folder))]
        results += (
            [made_with(tree, base / "ijepath" / "slides" / "slides.csv", Path(folder))] if "ijepath" in words else []
        )
        for several in results:
            for name, result in several:
                found[name] = result
                verdict = "" if not expected else "same" if expected.get(name) == result else "DIFFERENT"
                print(f"{name:<50} {str(result)[:16]} {verdict}", flush=True)
    if options["save"]:
        Path(options["save"]).write_text(json.dumps(found, indent=1))
    differing = [name for name in found if expected and expected.get(name) != found[name]]
    lacking = [name for name in expected if name not in found and name.split()[0] in (*words, *found)]
    print(f"{len(found)} results, {len(differing)} different, {len(lacking)} lacking")
    return 1 if differing or lacking else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
