"""What a finished MIL training leaves for those who read it, without a model: two tested slides of one split."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from mil.results import OOF, TEST
from pathray.run.layout import CONFIG
from pathray.store.sealed_parquet import to_bytes


def write_finished_run(root: Path) -> Path:
    """`root`/run, of the first two slides of the cohort in `root` (tests.builders.mil)."""
    run = root / "run"
    slides = {"slide_id": ["p00_s0", "p01_s0"], "patient_id": ["P00", "P01"]}
    table = pa.table(slides | {"prob_normal": [0.8, 0.3], "prob_tumor": [0.2, 0.7]})
    (run / "fold_0").mkdir(parents=True)
    (run / "fold_0" / TEST).write_bytes(to_bytes(table))
    (run / "fold_0" / CONFIG).write_text(f"data:\n  csv: {root}/slides.csv\n  store: {root}/store\n")
    (run / OOF).write_bytes(to_bytes(table.append_column("label", pa.array(["normal", "tumor"]))))
    return run
