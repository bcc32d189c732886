"""I-JEPATH pretraining on whole-slide images: from a slide manifest (or an anchor catalog) to an encoder, through Ray.

    python -m ray_jobs.pretrain_ijepath profile=ctx1p0_tgt0p5_fov512um_k4 \\
        data.slide_manifest_csv=slides.csv output=outputs/run optimization.total_images_budget=100000

A manifest and an output folder are enough: slide index and anchor catalog are built under the output folder when they
are missing or stale, then training starts, or resumes from the newest checkpoint of the output folder. SIGTERM and
Ctrl-C checkpoint and end cleanly; the same command resumes the run.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ijepath.config import CONFIGS_DIR, GROUPS, RunConfig, resolve_global_batch
from pathray.config.checks import check_at_least
from pathray.config.load import Loaded, placement
from pathray.errors import UserError
from pathray.run.layout import CATALOG_FILE, INDEX_FILE, PLAN
from pathray.wsi.spacing import MAX_ENLARGEMENT
from ray_jobs.shell.cli import Outputs, job
from ray_jobs.shell.dry_run import Needs, check_slides, of_catalog, of_index, of_manifest, tell
from ray_jobs.shell.runtime import RuntimeConfig
from ray_jobs.train import training_jobs
from ray_jobs.train.ijepath_inputs import (
    build_catalog,
    build_index,
    check_profile,
    is_index_built,
    prepare,
    profile_of,
    remote_advice,
)
from ray_jobs.train.pretraining import Pretraining, check_same_run, pretrain
from ray_jobs.train.training_jobs import (
    absolute,
    check_output,
    check_tuning,
    checkpoint_to_resume,
    evaluation_paths,
    outputs_if_finished,
    recorded_identity,
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
        check_at_least(self, "", 1, "max_enlargement")


def main(loaded: Loaded[PretrainConfig]) -> Outputs | None:
    return pretrain(JOB, loaded)


def build_shared_inputs(config: PretrainConfig, varied: Sequence[str]) -> list[str]:
    """Slide index and anchor catalog below `config.output`, built on the running Ray for several runs that differ in
    the keys `varied` only; the `key=value` words that name them. None of what depends on such a key."""
    from ijepath.profile import CATALOG_FIELDS
    from pathray.store.storage import Storage

    config = make_paths_absolute(config)
    data, root = config.data, Storage.of(str(config.output))
    of_the_index = {"data.slide_manifest_csv", "data.slide_metadata_parquet", "data.anchor_catalog_manifest"}
    if not is_index_built(config) or of_the_index & set(varied):
        return []
    index = data.slide_metadata_parquet or root.join(INDEX_FILE)
    build_index(config, index)
    words = [f"data.slide_metadata_parquet={index}"]
    of_the_catalog = {"profile", "data.sampling_stratum_key", *(f"data.{key}" for key in CATALOG_FIELDS)}
    if not of_the_catalog & set(varied):
        catalog = data.anchor_catalog_manifest or root.join(CATALOG_FILE)
        build_catalog(config, index, catalog)
        words.append(f"data.anchor_catalog_manifest={catalog}")
    return words


def make_paths_absolute(config: PretrainConfig) -> PretrainConfig:
    """The config with every path made absolute: a worker runs in another folder than the command."""
    keys = ("slide_manifest_csv", "slide_metadata_parquet", "anchor_catalog_manifest")
    paths: dict[str, Any] = {key: absolute(getattr(config.data, key)) for key in keys}
    data = replace(config.data, **paths)
    done: PretrainConfig = training_jobs.make_paths_absolute(config, data=data)
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
    from ijepath.indexing.index import COLUMNS
    from ijepath.indexing.manifest import read_manifest

    data = config.data
    check_tuning(config)
    if is_index_built(config):
        read_manifest(str(data.slide_manifest_csv), reserved=COLUMNS)
    if data.anchor_catalog_manifest and not data.slide_metadata_parquet:
        check_profile(config, data.anchor_catalog_manifest)


def rehearse(config: PretrainConfig) -> None:
    """UserError where too many slides are not there, do not say their spacing or are too coarse for the profile."""
    from ijepath.indexing.catalog import Catalog
    from ijepath.indexing.index import COLUMNS, read_index
    from ijepath.indexing.manifest import read_manifest

    data, profile, units = config.data, profile_of(config), list[tuple[int, str]]()
    needs = Needs((profile.context_effective_mpp, profile.target_effective_mpp), config.max_enlargement)
    if is_index_built(config):
        source = str(data.slide_manifest_csv)
        slides = of_manifest(read_manifest(source, reserved=COLUMNS))
    elif source := data.slide_metadata_parquet or "":
        slides = of_index(read_index(source).rows)
    else:
        source = str(data.anchor_catalog_manifest)
        catalog = Catalog.open(source)
        slides, units, needs = of_catalog(catalog), [(catalog.total_anchors, "anchors")], Needs()
    tell((check_slides(slides, source, config.min_success_fraction, needs), "slides"), *units)


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
    if checkpoint_to_resume(config) is None and (advice := remote_advice(config, plan.sources)):
        log.warning("%s", advice)
    return budget.metrics()


def resolve_config(config: PretrainConfig, anchors: int) -> PretrainConfig:
    """The config with the global batch fixed (that of the run it resumes, if it does) and the budget in images."""
    from pathray.train.budget import resolve_budget

    known = recorded_identity(config)
    config = resolve_global_batch(_keep_profile_name(config, known), config.scaling.ranks, known.get(GLOBAL_BATCH))
    settings = config.optimization
    batch = int(settings.global_batch or 0)
    images = resolve_budget(settings.total_images_budget, global_batch=batch, epoch_images=anchors, key=BUDGET)
    return replace(config, optimization=replace(settings, total_images_budget=images))


def _outputs_if_finished(config: PretrainConfig) -> Outputs | None:
    """The outputs of a run that has seen its budget, of anchors that its own plan counts."""
    from pathray.data.plan import Plan
    from pathray.store.storage import Storage

    if checkpoint_to_resume(config) is None:
        return None
    anchors = 1
    if isinstance(config.optimization.total_images_budget, Mapping):
        try:
            anchors = Plan.open(Storage.of(str(config.output)).join(PLAN)).rows
        except UserError:  # lost: it is built again
            return None
    done = outputs_if_finished(config, int(resolve_config(config, anchors).optimization.total_images_budget), BUDGET)
    return None if done is None else Outputs({**done.paths, **evaluation_paths(config)})


def _keep_profile_name(config: PretrainConfig, known: Mapping[str, Any]) -> PretrainConfig:
    """A run that is resumed keeps the profile's name that it began with, which says nothing of how it trains."""
    from ijepath.profile import GEOMETRY

    data = config.data
    if "data.profile_id" not in known or any(known.get(f"data.{key}") != getattr(data, key) for key in GEOMETRY):
        return config
    return replace(config, data=replace(data, profile_id=known["data.profile_id"]))


def _check_resumed(config: PretrainConfig) -> None:
    """UserError, before anything is built, when the workers cannot share the global batch, or when the output folder
    (or `checkpoint.resume`) holds another run. What only the plan can tell is checked when there is one."""
    known, budget = recorded_identity(config), config.optimization.total_images_budget
    if BUDGET in known and isinstance(budget, Mapping) and "epochs" in budget:  # of anchors that nobody has counted
        config = replace(config, optimization=replace(config.optimization, total_images_budget=known[BUDGET]))
    check_same_run("ijepath", resolve_config(config, anchors=1))


JOB = Pretraining(
    science="ijepath",
    locate=make_paths_absolute,
    check=check,
    rehearse=rehearse,
    outputs_if_finished=_outputs_if_finished,
    prepare=lambda config: prepare(config).plan,
    resolve=resolve_config,
    total_images=lambda config: int(config.optimization.total_images_budget),
    announce=announce,
)

if __name__ == "__main__":
    job(main, PretrainConfig, CONFIGS_DIR, GROUPS)
