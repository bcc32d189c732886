"""Anchor catalog → pictures of I-JEPATH's training data: context, targets and tokens of samples; tissue and anchors.

    python -m ray_jobs.preview_ijepath anchor_catalog=outputs/run/indexes/anchor_catalog_manifest.json \\
        output_dir=outputs/previews num_samples=8

The samples are at the first positions of the training order, made with the run's own order, reader and randomness. Give
the run's config (--config outputs/run/config_resolved.yaml) to see exactly its samples. Without it, the geometry comes
from the catalog and everything else is default. Needs no Ray.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from ijepath.config import CONFIGS_DIR, GROUPS, OptimizationConfig
from ijepath.profile import CATALOG_FIELDS, Profile
from pathray.config.load import MISSING, Loaded, placement
from pathray.errors import UserError
from pathray.reports.progress import Progress
from ray_jobs.pretrain_ijepath import PretrainConfig
from ray_jobs.shell.cli import Outputs, job
from ray_jobs.shell.dry_run import check_slides, of_catalog, tell
from ray_jobs.train.ijepath_inputs import too_coarse_slides

if TYPE_CHECKING:
    from ijepath.indexing.catalog import Catalog
    from pathray.store.storage import Storage

log = logging.getLogger(__name__)


@dataclass
class PreviewConfig(PretrainConfig):
    """A run's config (the parts that determine samples), and the pictures to draw."""

    optimization: OptimizationConfig = field(default_factory=lambda: OptimizationConfig(total_images_budget=1))
    anchor_catalog: str = placement(MISSING)  # the catalog's manifest, a JSON file
    output_dir: str = placement(MISSING)  # folder or URL
    num_samples: int = placement(8)
    num_zoomed_previews: int = placement(2)  # number of samples that also get a large view of steps 2 to 5
    final_png_scale: float = placement(2.0)  # scale of the high-resolution frame: 2 is 3200 x 1800 px
    first_position: int = placement(0)  # of the samples in the training order
    num_overlays: int = placement(8)  # number of slides whose tissue and anchors are drawn; -1: all

    def __post_init__(self) -> None:
        super().__post_init__()
        for key, least in (("num_samples", 0), ("num_zoomed_previews", 0), ("first_position", 0), ("num_overlays", -1)):
            if getattr(self, key) < least:
                message = f"{key} must be >= {least}"
                raise UserError(message, key=key, found=getattr(self, key), expected=f"at least {least}")
        if not 0.1 <= self.final_png_scale <= 8:
            raise UserError(
                "final_png_scale must be between 0.1 and 8",
                key="final_png_scale",
                found=self.final_png_scale,
                expected="0.1 – 8",
            )


def main(loaded: Loaded[PreviewConfig]) -> Outputs | None:
    from ijepath.indexing.catalog import Catalog
    from pathray.store.storage import Storage

    config = loaded.config
    catalog = Catalog.open(config.anchor_catalog)
    config = with_catalog_profile(config, catalog)
    log.info("%s anchors, profile %s", f"{catalog.total_anchors:,}", catalog.profile.name)
    if loaded.dry_run:
        slides = check_slides(of_catalog(catalog), catalog.path, config.min_success_fraction)
        return tell((slides, "slides"), (catalog.total_anchors, "anchors"), (config.num_samples, "samples"))
    store = Storage.of(config.output_dir)
    count = draw_previews(config, store) + draw_overlays(config, catalog, store)
    log.info("%d files", count)
    return Outputs({"previews": config.output_dir})


def with_catalog_profile(config: PreviewConfig, catalog: Catalog) -> PreviewConfig:
    """`config` with the catalog's value for every profile field that has its default. UserError if its geometry differs
    from the catalog's."""
    recorded, default = catalog.profile, Profile()
    own = {f.name: getattr(config.data, f.name) for f in fields(Profile)}
    values = {k: getattr(recorded, k) if v == getattr(default, k) else v for k, v in own.items()}
    for key in CATALOG_FIELDS:
        if values[key] != getattr(recorded, key):
            message = "the anchor catalog was built for another profile"
            expected = getattr(recorded, key)
            raise UserError(message, file=catalog.path, key=f"data.{key}", found=values[key], expected=expected)
    return replace(config, data=replace(config.data, **values))


def draw_previews(config: PreviewConfig, store: Storage) -> int:
    """Draw `num_samples` samples; returns the number of files. Samples of slides that would be enlarged more than
    `max_enlargement` times are skipped and named; UserError if none is left."""
    from ijepath.pictures.previews import preview_files
    from ijepath.pictures.sample import read_sample

    count, coarse = 0, list[str]()
    if not config.num_samples:
        return count
    with tempfile.TemporaryDirectory() as folder, Progress(config.num_samples, "previews", "samples") as progress:
        lookup, reader, refused = _training_order(config, folder)
        for i in range(config.num_samples):
            sample = read_sample(lookup, reader, config.first_position + i)
            progress.update()
            if sample.slide_id in refused:
                coarse.append(sample.slide_id)
                continue
            zoom = i < config.num_zoomed_previews
            for name, content in preview_files(i, sample, final_png_scale=config.final_png_scale, zoom=zoom):
                store.write_bytes(name, content)
                count += 1
    if coarse:
        _report_coarse(config, coarse)
    return count


def _report_coarse(config: PreviewConfig, slides: list[str]) -> None:
    """Warn that samples of these slides (one entry per sample) were skipped; UserError if none is left."""
    names = ", ".join(sorted(set(slides))[:10])
    message = f"{len(slides)} of {config.num_samples} samples are of slides too coarse for the profile: {names}"
    if len(slides) == config.num_samples:
        found, expected = config.max_enlargement, "a larger value, or anchors of slides with enough detail"
        raise UserError(message, file=config.anchor_catalog, key="max_enlargement", found=found, expected=expected)
    log.warning("%s; they are skipped (max_enlargement=%g)", message, config.max_enlargement)


def _training_order(config: PreviewConfig, folder: str) -> tuple[Any, Any, set[str]]:
    """The lookup and the reader that training would use, and the slides that are too coarse."""
    from ijepath.assembly import order_of
    from ijepath.config import resolve_global_batch
    from ijepath.data import AnchorReader, ReaderConfig
    from ijepath.plan import build_plan
    from pathray.data.share import Lookup

    config = resolve_global_batch(config, config.scaling.ranks)
    plan = build_plan(config.anchor_catalog, f"{folder}/plan", sampling_stratum_key=config.data.sampling_stratum_key)
    refused = set(too_coarse_slides(config, plan.sources))
    sources = {name: plan.sources[name].to_pylist() for name in plan.sources.column_names}
    return Lookup(plan, order_of(config, plan)), AnchorReader(ReaderConfig.of(config), sources), refused


def draw_overlays(config: PreviewConfig, catalog: Catalog, store: Storage) -> int:
    """Draw `overlays/<slide_id>.png` of the first slides; returns the number of files."""
    from ijepath.pictures.previews import png_bytes

    count, slides = 0, int(catalog.manifest["slides"])
    total = slides if config.num_overlays < 0 else min(config.num_overlays, slides)
    with Progress(total, "overlays", "slides") as progress:
        for name, picture in _overlays(config, catalog):
            store.write_bytes(f"overlays/{name}.png", png_bytes(picture))
            count += 1
            progress.update()
    return count


def _overlays(config: PreviewConfig, catalog: Catalog) -> Iterator[tuple[str, Any]]:
    from ijepath.pictures.overlays import draw_overlay, slides_of
    from ijepath.pictures.previews import file_name

    if config.num_overlays == 0:
        return
    for i, overlay in enumerate(slides_of(catalog)):
        yield file_name(str(overlay.slide["slide_id"])), draw_overlay(overlay, catalog.profile.name)
        if i + 1 == config.num_overlays:
            return


if __name__ == "__main__":
    job(main, PreviewConfig, CONFIGS_DIR, GROUPS)
