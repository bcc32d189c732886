"""What I-JEPATH pretraining reads, built where it is missing or stale: slide index, anchor catalog, plan.

Not here: how each of them is made (ray_jobs.index_slides, ray_jobs.build_anchors, ijepath.plan).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from ijepath.profile import Profile
from pathray.errors import UserError
from pathray.run.layout import ANCHOR_CATALOG, SLIDE_INDEX
from pathray.wsi.spacing import too_coarse
from ray_jobs.train.plans import share_plan
from ray_jobs.train.training_jobs import checkpoint_to_resume, plan_folder

if TYPE_CHECKING:
    from ray_jobs.pretrain_ijepath import PretrainConfig

log = logging.getLogger(__name__)


@dataclass
class Inputs:
    """What training reads, all of it current."""

    index: str
    catalog: str
    plan: Any
    built: list[str] = field(default_factory=list)


def is_index_built(config: PretrainConfig) -> bool:
    """Whether the slides of the manifest are looked at: not when a catalog is given and no index to keep current."""
    data = config.data
    return bool(data.slide_manifest_csv and (not data.anchor_catalog_manifest or data.slide_metadata_parquet))


def prepare(config: PretrainConfig) -> Inputs:
    """Index, anchor catalog and plan, each built on the running Ray when it is missing or stale."""
    from ijepath import plan as plans
    from pathray.data.plan import Plan
    from pathray.store.storage import Storage

    root = Storage.of(str(config.output))
    data, built = config.data, []
    index = data.slide_metadata_parquet or root.join(SLIDE_INDEX)
    catalog = data.anchor_catalog_manifest or root.join(ANCHOR_CATALOG)
    if is_index_built(config):
        built += build_index(config, index)
    if data.slide_metadata_parquet or not data.anchor_catalog_manifest:
        built += build_catalog(config, index, catalog)
    check_profile(config, catalog)
    folder = plan_folder(root)
    if not plans.is_current(folder, catalog, data.sampling_stratum_key):
        plans.build_plan(
            catalog, folder, sampling_stratum_key=data.sampling_stratum_key, batch_size=data.anchor_stream_batch_size
        )
        built.append("plan")
    plan = share_plan(Plan.open(folder, verify=True), folder, root)
    log.info("%s anchors in the plan; built now: %s", f"{plan.rows:,}", ", ".join(built) or "nothing")
    if warning := coarse_slides_note(config, plan.sources):
        log.warning("%s", warning)
    return Inputs(index, catalog, plan, built)


def build_index(config: PretrainConfig, output: str) -> list[str]:
    from ijepath.indexing.index import COLUMNS, is_current
    from ijepath.indexing.manifest import read_manifest
    from pathray.reports.units import check_success
    from ray_jobs import index_slides

    manifest = read_manifest(str(config.data.slide_manifest_csv), reserved=COLUMNS)
    if is_current(output, manifest):
        return []
    settings = index_slides.IndexSlidesConfig(manifest=str(config.data.slide_manifest_csv), output=output, resume=True)
    previous = index_slides.previous_rows(settings)
    begun = previous if checkpoint_to_resume(config) is not None else ()
    index = index_slides.build(settings, manifest, previous, begun)
    check_success(index.rows, "slide_id", "slides", config.min_success_fraction, settings.report)
    failed_then, failed = ({row["slide_id"] for row in rows if row["status"] != "ok"} for rows in (begun, index.rows))
    if readable := failed_then - failed:
        log.warning("%d slides have become readable since this run was begun and are not part of it", len(readable))
    return ["slide index"]


def build_catalog(config: PretrainConfig, index: str, output: str) -> list[str]:
    from ijepath.indexing.catalog import stale_reason
    from ijepath.indexing.index import read_index
    from ray_jobs import build_anchors

    profile, key = profile_of(config), config.data.sampling_stratum_key
    stale = stale_reason(output, profile, index, key)
    if not stale:
        return []
    log.info("anchor catalog: %s", stale)
    settings = build_anchors.BuildAnchorsConfig(
        slide_index=index,
        output=output,
        profile=profile,
        sampling_stratum_key=key,
        min_success_fraction=config.min_success_fraction,
        max_enlargement=config.max_enlargement,
    )
    build_anchors.build(settings, read_index(index))
    return ["anchor catalog"]


def profile_of(config: PretrainConfig) -> Profile:
    """The profile that the data section carries."""
    return Profile(**{f.name: getattr(config.data, f.name) for f in fields(Profile)})


def check_profile(config: PretrainConfig, catalog: str) -> None:
    """UserError when a given catalog was built for another geometry than the config's."""
    from ijepath.indexing.catalog import Catalog
    from ijepath.profile import CATALOG_FIELDS

    recorded, wanted = Catalog.open(catalog).manifest["profile"], profile_of(config).as_dict()
    for key in CATALOG_FIELDS:
        if recorded.get(key) != wanted[key]:
            message = "the anchor catalog was built for another profile"
            raise UserError(message, file=catalog, key=f"data.{key}", found=recorded.get(key), expected=wanted[key])


def remote_advice(config: PretrainConfig, sources: Any) -> str:
    """What to think of before a run over slides in a bucket begins; empty where nothing is."""
    from pathray.urls import is_url

    paths, data = sources.column("wsi_path").to_pylist(), config.data
    if data.slide_window or len(paths) <= data.max_open_slides or not any(map(is_url, paths)):
        return ""
    return (
        f"{len(paths):,} slides are read over the network in random order, {data.max_open_slides} open at a time: most "
        "samples open a slide anew. data.slide_window=16384 draws from few slides at a time; it is part of a run's "
        "identity, so decide before a long run. Or raise data.max_open_slides and data.threads"
    )


def too_coarse_slides(config: PretrainConfig, sources: Any) -> list[str]:
    """Which slides of a plan are enlarged more than `max_enlargement` times: of a catalog that was built before that
    rule, or with another value."""
    needed = profile_of(config)
    of = {name: sources.column(name).to_pylist() for name in ("slide_id", "source_context_mpp", "source_target_mpp")}
    return [
        slide
        for slide, context, target in zip(*of.values(), strict=True)
        if too_coarse([context], needed.context_effective_mpp, config.max_enlargement)
        or too_coarse([target], needed.target_effective_mpp, config.max_enlargement)
    ]


def coarse_slides_note(config: PretrainConfig, sources: Any) -> str:
    """What to say of the slides of a plan that are too coarse. Empty where none is."""
    found = too_coarse_slides(config, sources)
    if not found:
        return ""
    shown = ", ".join(found[:10]) + (f" and {len(found) - 10} more" if len(found) > 10 else "")
    return (
        f"{len(found)} of {sources.num_rows} slides are enlarged more than {config.max_enlargement:g} times beyond "
        f"what they hold: {shown}. The catalog was built with another max_enlargement: build it again to leave them out"
    )
