"""Pre-flight checklist of OCT pretraining: twelve lines from the storage to a training step, each with what it saw.

    python -m ray_jobs.check_oct --config single_domain data.manifest=URL/manifest.tsv data.gcs_root=URL

Each line is ok or FAILED, with the reason and what to do; a line that needs another's result is not run. The exit code
is 1 if one failed. Pictures of a sample volume go to `output_dir`. Needs no Ray.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass

from oct.config import CONFIGS_DIR
from pathray.config.checks import check_at_least
from pathray.config.load import Loaded, placement
from ray_jobs.pretrain_oct import PretrainOctConfig
from ray_jobs.shell.cli import Outputs, job
from ray_jobs.shell.dry_run import tell


@dataclass
class CheckOctConfig(PretrainOctConfig):
    """A run's config, and how much is looked at."""

    output_dir: str = placement("outputs/oct_check")  # of the pictures of a sample volume
    samples: int = placement(4)  # volumes to read
    seed: int = placement(0)  # of their choice
    full_model: bool = placement(False)  # line 11 with the config's model instead of a tiny one, on the CPU

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, "", 1, "samples")
        check_at_least(self, "", 0, "seed")


def main(loaded: Loaded[CheckOctConfig]) -> Outputs | None:
    from oct.checklist.lines import Seen
    from oct.checklist.run import CHECKS, format_line, run_checklist, verdict
    from oct.pictures.samples import find_origins

    config = loaded.config
    if loaded.dry_run:
        return tell((len(find_origins(config)), "files"), (len(CHECKS), "checks"))
    width = max(80, shutil.get_terminal_size((140, 24)).columns)
    seen, lines = Seen(config, config.output_dir, config.samples, config.seed, config.full_model), []
    for line in run_checklist(seen):
        print(format_line(line, width), flush=True)
        lines.append(line)
    _print_settings(width)
    print(f"\n{verdict(lines)}")
    return Outputs({"pictures": config.output_dir}, exit_code=1 if any(line.has_failed for line in lines) else 0)


def _print_settings(width: int) -> None:
    """Settings of the environment that were removed or change results."""
    from oct.checklist.lines import Line
    from oct.checklist.run import format_line
    from ray_jobs.checks.accelerators import environment
    from ray_jobs.checks.nodes import OK

    for check in environment():
        if check.status != OK:
            print(format_line(Line(0, check.name, check.status, check.found, check.advice), width))


if __name__ == "__main__":
    job(main, CheckOctConfig, CONFIGS_DIR)
