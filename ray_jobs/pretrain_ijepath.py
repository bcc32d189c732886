"""I-JEPATH pretraining on whole-slide images: from a slide manifest (or an anchor catalog) to an encoder, through Ray.

    python -m ray_jobs.pretrain_ijepath profile=ctx1p0_tgt0p5_fov512um_k4 \\
        data.slide_manifest_csv=slides.csv output=outputs/run optimization.total_images_budget=100000

A manifest and an output folder are enough: slide index and anchor catalog are built under the output folder when they
are missing or stale, then training starts, or goes on from the newest checkpoint of the output folder. SIGTERM and
Ctrl-C checkpoint and end cleanly; the same command goes on.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from ijepath.config import CONFIGS_DIR, GROUPS, RunConfig, resolve_global_batch
from ijepath.profile import Profile
from pathray.config.checks import at_least
from pathray.config.load import Loaded, placement
from pathray.errors import UserError
from pathray.run.layout import INDEXES, PLAN
from pathray.wsi.spacing import MAX_ENLARGEMENT, too_coarse
from ray_jobs.shell.cli import Outputs, job
from ray_jobs.shell.dry_run import Needs, check_slides, of_catalog, of_index, of_manifest, tell
from ray_jobs.shell.runtime import RuntimeConfig
from ray_jobs.train import training_jobs
from ray_jobs.train.pretraining import Pretraining, check_same_run, pretrain, share_plan
from ray_jobs.train.training_jobs import (
    absolute,
    check_output,
    check_tuning,
    evaluated,
    finished,
    plan_folder,
    recorded,
    resumed,
)

if TYPE_CHECKING:
    from pathray.data.plan import Plan

log = logging.getLogger(__name__)
BUDGET, GLOBAL_BATCH = "optimization.total_images_budget", "optimization.global_batch"


@dataclass
class PretrainConfig(RunConfig):
    """A run config, and where it runs."""

    runtime: RuntimeConfig = placement(default_factory=RuntimeConfig)
    min_success_fraction: float = placement(1.0)  # of the slides, when the index and the anchors are built here
    max_enlargement: float = placement(MAX_ENLARGEMENT)  # of a slide's finest level, when the anchors are built here

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, "", 1, "max_enlargement")


@dataclass
class Inputs:
    """What training reads, all of it current."""

    index: str
    catalog: str
    plan: Any
    built: list[str] = field(default_factory=list)


def main(loaded: Loaded[PretrainConfig]) -> Outputs | None:
    return pretrain(JOB, loaded)


def shared(config: PretrainConfig, varied: Sequence[str]) -> list[str]:
    """Slide index and anchor catalog below `config.output`, built on the running Ray for several runs that differ in
    the keys `varied` only; the `key=value` words that name them. None of what depends on such a key."""
    from ijepath.profile import CATALOG_FIELDS
    from pathray.store.storage import Storage

    config = located(config)
    data, root = config.data, Storage.of(str(config.output))
    of_the_index = {"data.slide_manifest_csv", "data.slide_metadata_parquet", "data.anchor_catalog_manifest"}
    if not _index_is_built(config) or of_the_index & set(varied):
        return []
    index = data.slide_metadata_parquet or root.join("slide_metadata.parquet")
    _build_index(config, index)
    words = [f"data.slide_metadata_parquet={index}"]
    of_the_catalog = {"profile", "data.sampling_stratum_key", *(f"data.{key}" for key in CATALOG_FIELDS)}
    if not of_the_catalog & set(varied):
        catalog = data.anchor_catalog_manifest or root.join("anchor_catalog_manifest.json")
        _build_catalog(config, index, catalog)
        words.append(f"data.anchor_catalog_manifest={catalog}")
    return words


def located(config: PretrainConfig) -> PretrainConfig:
    """The config with every path made absolute: a worker runs in another folder than the command."""
    keys = ("slide_manifest_csv", "slide_metadata_parquet", "anchor_catalog_manifest")
    paths: dict[str, Any] = {key: absolute(getattr(config.data, key)) for key in keys}
    data = replace(config.data, **paths)
    done: PretrainConfig = training_jobs.located(config, data=data)
    return done


def check(config: PretrainConfig) -> None:
    """UserError for what cannot be trained on, or is another run's, before slides are looked at and Ray is started."""
    check_output(config.output)
    data = config.data
    if not (data.slide_manifest_csv or data.slide_metadata_parquet or data.anchor_catalog_manifest):
        expected = "data.slide_manifest_csv=slides.csv, or data.anchor_catalog_manifest=anchor_catalog_manifest.json"
        raise UserError("nothing to train on", key="data.slide_manifest_csv", expected=expected)
    _check_inputs(config)
    _check_resumed(config)


def _check_inputs(config: PretrainConfig) -> None:
    """UserError for what can be told of manifest and catalog without opening a slide, before Ray is started."""
    from ijepath.index import COLUMNS
    from ijepath.manifest import read_manifest

    data = config.data
    check_tuning(config)
    if _index_is_built(config):
        read_manifest(str(data.slide_manifest_csv), reserved=COLUMNS)
    if data.anchor_catalog_manifest and not data.slide_metadata_parquet:
        _same_profile(config, data.anchor_catalog_manifest)


def rehearse(config: PretrainConfig) -> None:
    """UserError where too many slides are not there, do not say their spacing or are too coarse for the profile."""
    from ijepath.catalog import Catalog
    from ijepath.index import COLUMNS, read_index
    from ijepath.manifest import read_manifest

    data, profile, units = config.data, profile_of(config), list[tuple[int, str]]()
    needs = Needs((profile.context_effective_mpp, profile.target_effective_mpp), config.max_enlargement)
    if _index_is_built(config):
        source = str(data.slide_manifest_csv)
        slides = of_manifest(read_manifest(source, reserved=COLUMNS))
    elif source := data.slide_metadata_parquet or "":
        slides = of_index(read_index(source).rows)
    else:
        source = str(data.anchor_catalog_manifest)
        catalog = Catalog.open(source)
        slides, units, needs = of_catalog(catalog), [(catalog.total_anchors, "anchors")], Needs()
    tell((check_slides(slides, source, config.min_success_fraction, needs), "slides"), *units)


def _index_is_built(config: PretrainConfig) -> bool:
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
    index = data.slide_metadata_parquet or root.join(INDEXES, "slide_metadata.parquet")
    catalog = data.anchor_catalog_manifest or root.join(INDEXES, "anchor_catalog_manifest.json")
    if _index_is_built(config):
        built += _build_index(config, index)
    if data.slide_metadata_parquet or not data.anchor_catalog_manifest:
        built += _build_catalog(config, index, catalog)
    _same_profile(config, catalog)
    folder = plan_folder(root)
    if not plans.is_current(folder, catalog, data.sampling_stratum_key):
        plans.build_plan(
            catalog, folder, sampling_stratum_key=data.sampling_stratum_key, batch_size=data.anchor_stream_batch_size
        )
        built.append("plan")
    plan = share_plan(Plan.open(folder, verify=True), folder, root)
    log.info("%s anchors in the plan; built now: %s", f"{plan.rows:,}", ", ".join(built) or "nothing")
    if warning := enlarged(config, plan.sources):
        log.warning("%s", warning)
    return Inputs(index, catalog, plan, built)


def _build_index(config: PretrainConfig, output: str) -> list[str]:
    from ijepath.index import COLUMNS, is_current
    from ijepath.manifest import read_manifest
    from pathray.reports.units import check_success
    from ray_jobs import index_slides

    manifest = read_manifest(str(config.data.slide_manifest_csv), reserved=COLUMNS)
    if is_current(output, manifest):
        return []
    settings = index_slides.IndexSlidesConfig(manifest=str(config.data.slide_manifest_csv), output=output, resume=True)
    previous = index_slides.previous_rows(settings)
    begun = previous if resumed(config) is not None else ()
    index = index_slides.build(settings, manifest, previous, begun)
    check_success(index.rows, "slide_id", "slides", config.min_success_fraction, settings.report)
    failed_then, failed = ({row["slide_id"] for row in rows if row["status"] != "ok"} for rows in (begun, index.rows))
    if readable := failed_then - failed:
        log.warning("%d slides have become readable since this run was begun and are not part of it", len(readable))
    return ["slide index"]


def _build_catalog(config: PretrainConfig, index: str, output: str) -> list[str]:
    from ijepath.catalog import stale_because
    from ijepath.index import read_index
    from ray_jobs import build_anchors

    profile, key = profile_of(config), config.data.sampling_stratum_key
    stale = stale_because(output, profile, index, key)
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


def _same_profile(config: PretrainConfig, catalog: str) -> None:
    """UserError when a given catalog was built for another geometry than the config's."""
    from ijepath.catalog import Catalog
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


def enlarged(config: PretrainConfig, sources: Any) -> str:
    """What to say of the slides of a plan that are too coarse. Empty where none is."""
    found = too_coarse_slides(config, sources)
    if not found:
        return ""
    shown = ", ".join(found[:10]) + (f" and {len(found) - 10} more" if len(found) > 10 else "")
    return (
        f"{len(found)} of {sources.num_rows} slides are enlarged more than {config.max_enlargement:g} times beyond "
        f"what they hold: {shown}. The catalog was built with another max_enlargement: build it again to leave them out"
    )


def announce(asked: PretrainConfig, config: PretrainConfig, plan: Plan) -> dict[str, float]:
    """Log the diversity budget, and advice before a run begins; the budget as metrics."""
    from ijepath.diversity import Diversity
    from pathray.train.budget import passes_note

    data, images = config.data, int(config.optimization.total_images_budget)
    batch = int(config.optimization.global_batch or 0)
    budget_asked = asked.optimization.total_images_budget
    if note := passes_note(budget_asked, images=images, global_batch=batch, epoch_images=plan.rows):
        log.warning("%s (optimization.global_batch, data.batch_size_per_gpu x scaling.workers)", note)
    budget = Diversity(
        plan.rows, images, data.low_anchor_pass_warning_threshold, data.high_anchor_pass_warning_threshold
    )
    for line in budget.lines():
        log.info(line)
    if resumed(config) is None and (advice := remote_advice(config, plan.sources)):
        log.warning("%s", advice)
    return budget.metrics()


def resolved(config: PretrainConfig, anchors: int) -> PretrainConfig:
    """The config with the global batch fixed (that of the run it resumes, if it does) and the budget in images."""
    from pathray.train.budget import resolve_budget

    known = recorded(config)
    config = resolve_global_batch(_as_named(config, known), config.scaling.ranks, known.get(GLOBAL_BATCH))
    settings = config.optimization
    batch = int(settings.global_batch or 0)
    images = resolve_budget(settings.total_images_budget, global_batch=batch, epoch_images=anchors, key=BUDGET)
    return replace(config, optimization=replace(settings, total_images_budget=images))


def _finished(config: PretrainConfig) -> Outputs | None:
    """The outputs of a run that has seen its budget, of anchors that its own plan counts."""
    from pathray.data.plan import Plan
    from pathray.store.storage import Storage

    if resumed(config) is None:
        return None
    anchors = 1
    if isinstance(config.optimization.total_images_budget, Mapping):
        try:
            anchors = Plan.open(Storage.of(str(config.output)).join(PLAN)).rows
        except UserError:  # lost: it is built again
            return None
    done = finished(config, int(resolved(config, anchors).optimization.total_images_budget), BUDGET)
    return None if done is None else Outputs({**done.paths, **evaluated(config)})


def _as_named(config: PretrainConfig, known: Mapping[str, Any]) -> PretrainConfig:
    """A run that is resumed keeps the profile's name that it began with, which says nothing of how it trains."""
    from ijepath.profile import GEOMETRY

    data = config.data
    if "data.profile_id" not in known or any(known.get(f"data.{key}") != getattr(data, key) for key in GEOMETRY):
        return config
    return replace(config, data=replace(data, profile_id=known["data.profile_id"]))


def _check_resumed(config: PretrainConfig) -> None:
    """UserError, before anything is built, when the workers cannot share the global batch, or when the output folder
    (or `checkpoint.resume`) holds another run. What only the plan can tell is checked when there is one."""
    known, budget = recorded(config), config.optimization.total_images_budget
    if BUDGET in known and isinstance(budget, Mapping) and "epochs" in budget:  # of anchors that nobody has counted
        config = replace(config, optimization=replace(config.optimization, total_images_budget=known[BUDGET]))
    check_same_run("ijepath", resolved(config, anchors=1))


JOB = Pretraining(
    science="ijepath",
    locate=located,
    check=check,
    rehearse=rehearse,
    finished=_finished,
    prepare=lambda config: prepare(config).plan,
    resolve=resolved,
    total_images=lambda config: int(config.optimization.total_images_budget),
    announce=announce,
)

if __name__ == "__main__":
    job(main, PretrainConfig, CONFIGS_DIR, GROUPS)
