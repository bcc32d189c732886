"""OCT manifest or index → pictures of sample volumes as stored, on the grid, augmented and masked; a page of them.

    python -m ray_jobs.preview_oct data.manifest=oct/manifest.tsv output_dir=outputs/oct_preview num_samples=8
    python -m ray_jobs.preview_oct --config outputs/run/config_resolved.yaml output_dir=outputs/oct_preview

Volumes are chosen at random by `seed`. Grid, augmentation and masks are the run config's. Files that are no volume or
cannot be read are left out and listed. Needs no Ray.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from oct.config import CONFIGS_DIR
from pathray.config.checks import check_at_least, check_between
from pathray.config.load import MISSING, Loaded, placement
from pathray.errors import MissingFile, UserError
from pathray.reports.progress import Progress
from ray_jobs.pretrain_oct import PretrainOctConfig
from ray_jobs.shell.cli import Outputs, job
from ray_jobs.shell.dry_run import tell

if TYPE_CHECKING:
    from oct.pictures.previews import Entry
    from oct.pictures.samples import Origin
    from pathray.store.storage import Storage

log = logging.getLogger(__name__)
PAGE = "index.html"


@dataclass
class PreviewOctConfig(PretrainOctConfig):
    """A run's config (the parts that determine samples), and the pictures to draw."""

    output_dir: str = placement(MISSING)  # folder or URL
    num_samples: int = placement(8)
    seed: int = placement(0)  # of the choice of volumes
    png_scale: float = placement(1.5)  # 1.5: slides are 2400 pixels wide

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, "", 1, "num_samples")
        check_at_least(self, "", 0, "seed")
        check_between(self, "", 0.2, 8, "png_scale")


def main(loaded: Loaded[PreviewOctConfig]) -> Outputs | None:
    from oct.pictures.samples import find_origins, shuffle
    from pathray.store.storage import Storage

    config = loaded.config
    origins = find_origins(config)
    chosen = shuffle(origins, config.seed)
    log.info("%s files in %s", f"{len(origins):,}", config.data.index or config.data.manifest)
    if loaded.dry_run:
        check_there(chosen[: config.num_samples], config)
        return tell((len(origins), "files"), (min(config.num_samples, len(origins)), "samples"))
    draw(config, chosen, Storage.of(config.output_dir))
    return Outputs({"previews": config.output_dir, "page": f"{config.output_dir.rstrip('/')}/{PAGE}"})


def check_there(origins: list[Origin], config: PreviewOctConfig) -> None:
    """MissingFile if none of the first samples is there; others are logged, and the job takes the next file."""
    from ray_jobs.extract.actors import ABSENT, map_in_threads, state_of

    states = map_in_threads(state_of, [origin.url for origin in origins])
    lost = [origin.path for origin, state in zip(origins, states, strict=True) if state == ABSENT]
    for path in lost:
        log.warning("would be left out: %s: no such file", path)
    if len(lost) == len(origins):
        source = config.data.index or config.data.manifest
        raise MissingFile("none of the chosen files is there", file=source, found=lost[0], expected="data.gcs_root=…")


def draw(config: PreviewOctConfig, chosen: list[Origin], store: Storage) -> list[Entry]:
    """Write the slides of the first volumes that can be read, and the page. UserError if none can be."""
    from oct.pictures.previews import describe_sample, preview_page, read_samples, slide_files

    left_out: list[tuple[str, str]] = []
    entries: list[Entry] = []
    with Progress(config.num_samples, "previews", "volumes") as progress:
        for number, sample in enumerate(read_samples(config, chosen, config.num_samples, left_out)):
            for name, content in slide_files(sample, config, number, config.png_scale):
                store.write_bytes(name, content)
            entries.append(describe_sample(sample, number))
            progress.update()
    for path, reason in left_out:
        log.warning("left out: %s (%s)", path, reason)
    source = str(config.data.index or config.data.manifest)
    if not entries:
        found = f"{left_out[0][0]}: {left_out[0][1]}" + f" and {len(left_out) - 1} more" * (len(left_out) > 1)
        raise UserError("no volume could be read", file=source, found=found, expected="volumes to look at")
    store.write_bytes(PAGE, preview_page(config, entries, left_out, source).encode())
    return entries


if __name__ == "__main__":
    job(main, PreviewOctConfig, CONFIGS_DIR)
