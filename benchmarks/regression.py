"""Gene-wise correlations against a loop over scipy, their cluster bootstrap, and how long a training waits for images.

    OMP_NUM_THREADS=1 python benchmarks/regression.py
    OMP_NUM_THREADS=1 python benchmarks/regression.py --data ../shared/data

Spearman of 20,000 rows x 250 genes (predictions continuous, targets with ties, like log counts), the best of three
rounds; and 2,000 resamples of 1,193 rows x 50 genes, in 6 clusters and with one cluster per row. One core, 15 seconds.
With `--data`: ResNet-18 on the 224-pixel patches of `regression/her2st`, batches of 16. One thread reads the images
and one trains; the share of a step that waits for data is printed. Two free cores, a minute.
Bars: 3 x the loop; a bootstrap under 2 seconds; waits under 5% of a step.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
if not __package__:  # as a script, its folder comes first, where the science's name would be this file's
    sys.path.pop(0)

import numpy as np
import torch
from scipy import stats

from pathray.data.share import Lookup, rank_rows
from pathray.data.splits import Split
from pathray.data.stream import DecodeSettings, stream_batches
from pathray.device import Device
from pathray.stats.correlation import bootstrap_correlation, spearman
from pathray.train.loop import run
from pathray.train.state import TrainState
from regression.assembly import assemble
from regression.config import RunConfig, resolve
from regression.plan import build_plan
from regression.tables.table import read_table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="the folder that holds regression/her2st")
    options = parser.parse_args()
    if options.data is not None:
        data_wait(options.data / "regression" / "her2st")
        return
    g = np.random.default_rng(0)
    predicted = g.normal(size=(20_000, 250))
    measured = np.log1p(g.poisson(np.exp(predicted + g.normal(size=predicted.shape))))
    ours, found = best(lambda: spearman(predicted, measured).values)
    loop, expected = best(lambda: scipy_loop(predicted, measured))
    assert np.allclose(found, expected, atol=1e-12), "not what scipy says"
    print(f"Spearman 20,000 x 250: {ours:.2f} s, a loop over scipy {loop:.2f} s, x {loop / ours:.1f}")
    x, y = predicted[:1193, :50], measured[:1193, :50]
    for name, clusters in (("6 clusters", np.arange(1193) % 6), ("1,193 clusters", np.arange(1193))):
        for method in ("pearson", "spearman"):
            seconds, _ = best(lambda c=clusters, m=method: bootstrap_correlation(x, y, c, method=m), rounds=2)
            print(f"2,000 resamples of 1,193 x 50, {name}, {method}: {seconds:.2f} s")


def scipy_loop(predicted: np.ndarray, measured: np.ndarray) -> np.ndarray:
    return np.array([stats.spearmanr(predicted[:, k], measured[:, k]).statistic for k in range(predicted.shape[1])])


def best(run: Callable[[], Any], rounds: int = 3) -> tuple[float, Any]:
    """Seconds of the fastest round, and its result."""
    seconds, found = float("inf"), None
    for _ in range(rounds):
        began = time.perf_counter()
        found = run()
        seconds = min(seconds, time.perf_counter() - began)
    return seconds, found


def data_wait(her2st: Path, batch: int = 16, steps: int = 12, warm: int = 2) -> None:
    """Print the duration of a step and the share that waits for data, after `warm` steps."""
    torch.set_num_threads(1)
    images = sorted(str(path.resolve()) for path in (her2st / "patches").iterdir())[: batch * (steps + warm)]
    config = RunConfig()
    config.data.target_dim, config.train.global_batch, config.train.batch_size = 2, batch, batch
    config.train.images, config.train.amp = batch * (steps + warm), "none"
    targets = np.random.default_rng(0).normal(size=(len(images), 2))
    lines = [
        "path,group_id,y0,y1",
        *(f"{p},{i % 3},{a},{b}" for i, (p, (a, b)) in enumerate(zip(images, targets, strict=True))),
    ]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "table.csv").write_text("\n".join(lines) + "\n")
        table = read_table(str(Path(folder) / "table.csv"))
        split = Split(np.full(len(images), "train"), {"table": table.hash})
        plan = build_plan(table, split, str(Path(folder) / "plan"))
        parts = assemble(resolve(config, 1, plan.rows), plan, 1)
        settings, device, lookup = parts.settings, Device.of("cpu"), Lookup(plan, parts.order)

        def batches(start: int) -> Iterator[dict[str, Any]]:
            rows = rank_rows(lookup, start, settings.total_images, batch, 0, 1, settings.micro_batch)
            for one in stream_batches(rows, parts.reader, lookup, DecodeSettings(threads=1)):
                yield {key: value for key, value in one.items() if key != "faults"}

        state = TrainState(parts.recipe, settings, device)
        ticks = [(t.step_s, t.wait_s) for t in run(parts.recipe, batches, settings, device=device, state=state)][warm:]
    step, wait = (sum(part) for part in zip(*ticks, strict=True))
    print(
        f"ResNet-18 at 224 px, batch {batch}: {step / len(ticks):.2f} s a step, {wait / step:.2%} of it waits for data"
    )


if __name__ == "__main__":
    main()
