"""A trained regression and a table → correlations per gene with intervals over groups, and all predictions.

    python -m ray_jobs.evaluate_regression model=outputs/regression/RUN/encoder table=metadata.csv split=split.csv \\
        output=outputs/evaluated

Every row of the part is predicted once; an unreadable image ends the job, so that no row is skipped. Figures are drawn
next to the tables: the best, the median and the worst gene, all genes and, if the table has positions, maps of the
sections. Needs no Ray.
"""

from __future__ import annotations

import logging
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import pathray
from pathray.config.load import MISSING, Loaded
from pathray.errors import UserError
from pathray.run.layout import CHECKPOINTS, CONFIG, FIGURES
from ray_jobs.shell.cli import Outputs, job
from ray_jobs.shell.dry_run import tell
from regression.config import EvalConfig

log = logging.getLogger(__name__)


@dataclass
class EvaluateRegressionConfig:
    model: str = MISSING  # the model exported by a run: RUN/encoder
    table: str = MISSING  # CSV or parquet with columns path, group_id and the model's genes
    split: str = MISSING  # CSV with columns path, group_id, split
    part: str = "test"  # | train | val
    output: str = MISSING  # folder or URL of the results
    accelerator: str = "auto"  # auto | cpu | cuda
    seed: int = 42  # of the intervals
    eval: EvalConfig = field(default_factory=EvalConfig)

    def __post_init__(self) -> None:
        if self.part not in ("train", "val", "test"):
            raise UserError("unknown part", key="part", found=self.part, expected="train | val | test")


def main(loaded: Loaded[EvaluateRegressionConfig]) -> Outputs | None:
    from pathray.data.split_files import read_split
    from pathray.device import Device
    from pathray.store.storage import Storage
    from regression import artifact
    from regression.plan import build_plan, rows_of
    from regression.reports.report import METRICS, PER_GENE, judge, metrics_text, recipe_of
    from regression.tables.table import read_table

    config = loaded.config
    trained = artifact.load(config.model)
    table = read_table(config.table, genes=trained.normaliser.genes, constant_genes=True)
    split = read_split(config.split, table, trains=False)
    if (count := int((split.of == config.part).sum())) < 2:
        raise UserError("too few rows to evaluate", file=config.split, key="part", found=count, expected="two or more")
    store = Storage.of(config.output)
    if store.exists(CHECKPOINTS) or store.exists(CONFIG):
        raise UserError("the output contains a training run", file=store.url, key="output", expected="another folder")
    if loaded.dry_run:
        return tell((count, f"rows of {config.part}"))
    with tempfile.TemporaryDirectory(prefix="pathray-") as folder:
        plan = build_plan(table, split, folder, normalize_target=False)
        device = Device.of(config.accelerator)
        judged = judge(store, recipe_of(trained), plan, [config.part], config.eval, config.seed, device)
        groups = len(set(plan.sources["group_id"].take(rows_of(plan, config.part)).to_pylist()))
    found = judged[config.part]
    about = {"model": trained.description["sha256"], "table": table.hash, "part": config.part, "groups": groups}
    store.write_bytes(METRICS, metrics_text({**about, **found}))
    for name, value in found.items():
        log.info("%-22s %s", name, value)
    outputs = {"metrics": METRICS, "per_gene": PER_GENE, "figures": FIGURES}
    return Outputs({name: store.join(path) for name, path in outputs.items()})


if __name__ == "__main__":
    job(main, EvaluateRegressionConfig, Path(pathray.__file__).parent)
