"""Training curves of a run as one PNG: loss, schedules, tokens, collapse signals, speed, from its metrics.jsonl.

    python -m ray_jobs.plot_training run=outputs/run output=outputs/run/curves.png
    python -m ray_jobs.plot_training logs='logs/*_0_log.out' output=curves.png

Works while the run is in progress, and on a run folder of any science; ADIOS runs get a film of their masks, too, next
to `output` (`curves_masks.gif`). `logs` are text logs of ADIOS runs made with the published code. Needs no Ray.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import pathray
from pathray.config.load import Loaded
from pathray.draw.charts import Panel, draw_curves
from pathray.errors import MissingFile, UserError
from pathray.run.layout import CHECKPOINTS, MASK_PICTURES, METRICS
from ray_jobs.shell.cli import Outputs, job
from ray_jobs.shell.dry_run import tell

if TYPE_CHECKING:
    from pathray.store.storage import Storage

log = logging.getLogger(__name__)
SCIENCES = ("ijepath", "regression", "adios", "oct")


@dataclass
class PlotConfig:
    run: str = ""  # the run's folder or URL
    logs: str = ""  # text logs instead: a pattern of local file names, of one run
    output: str = ""  # PNG; "" = curves.png in the run's folder, or beside the logs
    title: str = ""  # "" = the run's name
    scale: float = 1.5  # 1 is 1600 px wide

    def __post_init__(self) -> None:
        if os.path.isfile(self.run):
            raise UserError("a run is a folder", key="run", found=self.run, expected="the output of a training")
        if not self.output:
            self.output = os.path.join(self.run or os.path.dirname(self.logs), "curves.png")
        if not 0.1 <= self.scale <= 8:
            raise UserError("not a sensible scale", key="scale", found=self.scale, expected="0.1 – 8")


def main(loaded: Loaded[PlotConfig]) -> Outputs | None:
    from pathray.store.metrics_log import MetricsLog
    from pathray.store.storage import Storage

    config = loaded.config
    if bool(config.run) == bool(config.logs):
        found = f"run={config.run} logs={config.logs}"
        raise UserError(
            "`run` or `logs` is required, not both", key="run", found=found, expected="run=FOLDER or logs=PATTERN"
        )
    if config.logs:
        return from_logs(config, loaded.dry_run)
    store = Storage.of(config.run)
    if not store.exists(METRICS):
        raise MissingFile("no metrics were logged here yet", file=store.join(METRICS), key="run")
    rows = MetricsLog(store.join(METRICS)).read()
    if loaded.dry_run:
        return tell((len(rows), "rows of metrics"))
    title = config.title or os.path.basename(config.run.rstrip("/"))
    write(config.output, draw_curves(rows, panels_of(store), title, scale=config.scale))
    return Outputs({"curves": config.output, **film(store, config.output)})


def panels_of(store: Storage) -> Sequence[Panel]:
    """What the science of a run draws; what any science does where no checkpoint says yet which it is, since panels
    without figures are left out."""
    if (science := science_of(store)) is not None:
        own: Sequence[Panel] = import_module(f"{science}.curves").CURVES
        return own
    every = [panel for science in SCIENCES for panel in import_module(f"{science}.curves").CURVES]
    return list({panel.title: panel for panel in every}.values())


def science_of(store: Storage) -> str | None:
    """The package of the science that trained in a run's folder, as its newest checkpoint names it."""
    from pathray.store.committed import list_committed

    try:
        found = list_committed(store.join(CHECKPOINTS))
        names = [committed.meta["identity"]["values"]["science"] for committed in found]
    except (UserError, KeyError, TypeError) as e:
        log.warning("no checkpoint of the run says which science it is of: %s", e)
        return None
    return names[-1] if names and names[-1] in SCIENCES else None


def from_logs(config: PlotConfig, dry_run: bool) -> Outputs | None:
    """Curves over iterations: a panel for each figure that varies in the text logs, oldest first."""
    import glob

    from adios.text_log import STEP, read_logs
    from pathray.urls import is_url, local_path, public

    if is_url(config.logs):
        expected = "a pattern of local files; copy the logs first"
        raise UserError("logs are not read from URLs", key="logs", found=public(config.logs), expected=expected)
    matched = glob.glob(local_path(config.logs))
    paths = sorted(filter(os.path.isfile, matched), key=lambda path: (os.path.getmtime(path), path))
    if not paths:
        found = f"{len(matched)} folders" if matched else "nothing"
        expected = "a pattern that some files match, as 'FOLDER/*.out'"
        raise MissingFile("no such logs", file=config.logs, key="logs", found=found, expected=expected)
    rows = read_logs(paths)
    if dry_run:
        return tell((len(paths), "logs"), (len(rows), "rows"))
    names = dict.fromkeys(name for row in rows for name in row if name != STEP)
    panels = [Panel(name.replace("_", " "), ((name, name),)) for name in names]
    title = config.title or os.path.basename(paths[-1])
    write(config.output, draw_curves(rows, panels, title, scale=config.scale, along=STEP))
    return Outputs({"curves": config.output})


def film(store: Storage, curves: str) -> dict[str, str]:
    """The film of a run's pictures of masks, where there are some, beside its `curves`: the run is only read."""
    from adios.visualise import FILE, write_film

    folder = store.at(MASK_PICTURES)
    if not any(FILE.fullmatch(name) for name in folder.list()):
        return {}
    return {"masks": write_film(folder.url, f"{os.path.splitext(curves)[0]}_masks.gif")}


def write(path: str, picture: bytes) -> None:
    from pathray.store.storage import Storage

    Storage.of(os.path.dirname(path) or ".").write_bytes(os.path.basename(path), picture)


if __name__ == "__main__":
    job(main, PlotConfig, Path(pathray.__file__).parent)
