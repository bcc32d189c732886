"""Ask a run, wherever it is, to checkpoint and end. The same command as before resumes it.

    python -m ray_jobs.stop outputs/run

Leaves an object named STOP in the run's folder (a path or a URL), which all ranks look for together; the job then ends
with exit code 0. Needs no Ray, and no access to the machine that trains.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pathray
from pathray.config.load import MISSING, Loaded
from pathray.errors import MissingFile
from pathray.run.layout import CHECKPOINTS, CONFIG, METRICS, PROGRESS, STOP
from pathray.run.stop import request_stop
from ray_jobs.shell.cli import Outputs, job
from ray_jobs.shell.dry_run import tell

if TYPE_CHECKING:
    from pathray.store.storage import Storage

log = logging.getLogger(__name__)


@dataclass
class StopConfig:
    run: str = MISSING  # the run's folder or URL; the word alone does


def main(loaded: Loaded[StopConfig]) -> Outputs | None:
    from pathray.store.storage import Storage

    store = Storage.of(loaded.config.run)
    if not any(map(store.exists, (CONFIG, CHECKPOINTS, METRICS, "sweep.yaml"))):
        expected = "the output folder of a training job that has begun"
        raise MissingFile("no run found", file=store.url, key="run", expected=expected)
    beat = _end(store)
    if loaded.dry_run:
        return tell((0 if beat else 1, "runs to stop"))
    if beat is not None:
        log.info("this run has ended (%s, after %s images): nothing to stop", beat["end"], f"{beat['images_seen']:,}")
        return Outputs({"run": store.url})
    request_stop(store.url)
    log.info("asked to stop: the job ends after its next poll, when its checkpoint is written")
    return Outputs({"stop": store.join(STOP)})


def _end(store: Storage) -> dict[str, Any] | None:
    """The last sign of life of a run, if it says that the run has ended; a later start writes others."""
    try:
        beat = json.loads(store.read_bytes(PROGRESS))
    except (MissingFile, json.JSONDecodeError):
        return None
    return beat if isinstance(beat, dict) and {"end", "images_seen"} <= beat.keys() else None


def words(argv: list[str]) -> list[str]:
    """A folder or URL alone means `run=` it."""
    return [word if re.match(r"-|[\w.\[\]]+=", word) else f"run={word}" for word in argv]


if __name__ == "__main__":
    sys.argv[1:] = words(sys.argv[1:])
    job(main, StopConfig, Path(pathray.__file__).parent)
