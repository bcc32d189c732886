"""V-JEPA pretraining on OCT volumes: from a manifest (or an index of volumes) to an encoder, through Ray.

    python -m ray_jobs.pretrain_oct --config smoke data.manifest=manifest.tsv output=outputs/oct

`data.manifest` is AI-READI's manifest.tsv, which is indexed first; `data.index` is what ray_jobs.index_oct wrote.
Training resumes from the newest checkpoint of the output folder. SIGTERM and Ctrl-C checkpoint and end cleanly; the
same command resumes the run.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from oct.config import CONFIGS_DIR, RunConfig, resolve
from pathray.config.load import Loaded, placement
from pathray.errors import UserError
from pathray.run.layout import INDEXES, PLAN
from ray_jobs.shell.cli import Outputs, job
from ray_jobs.shell.dry_run import check_files, tell
from ray_jobs.shell.runtime import RuntimeConfig
from ray_jobs.train import training_jobs
from ray_jobs.train.plans import reopen_plan, replace_plan, share_plan
from ray_jobs.train.pretraining import Pretraining, check_same_run, pretrain
from ray_jobs.train.training_jobs import (
    absolute,
    check_output,
    check_tuning,
    checkpoint_to_resume,
    evaluation_paths,
    outputs_if_finished,
    plan_folder,
    recorded_identity,
)

if TYPE_CHECKING:
    from pathray.data.plan import Plan

log = logging.getLogger(__name__)
BUDGET = "optimization.total_epochs, optimization.total_images"
VOLUME_INDEX = "volumes.parquet"
T = TypeVar("T")


@dataclass
class PretrainOctConfig(RunConfig):
    """A run config, and where it runs."""

    runtime: RuntimeConfig = placement(default_factory=RuntimeConfig)


def main(loaded: Loaded[PretrainOctConfig]) -> Outputs | None:
    return pretrain(JOB, loaded)


def make_paths_absolute(config: PretrainOctConfig) -> PretrainOctConfig:
    """The config with every path made absolute: a worker runs in another folder than the command."""
    data, keys = config.data, ("index", "manifest", "gcs_root", "split_file", "file_list")
    paths: dict[str, Any] = {key: absolute(getattr(data, key)) for key in keys}
    paths["cache_dir"] = absolute(data.cache_folder)  # workers may not have this process's DATA_CACHE_DIR
    done: PretrainOctConfig = training_jobs.make_paths_absolute(config, data=replace(data, **paths))
    return done


def check(config: PretrainOctConfig) -> None:
    """UserError, before Ray is started, for what can be told of the config, of manifest or index and of the run that is
    resumed."""
    from oct.indexing.index_file import read_index
    from oct.indexing.manifest import read_manifest

    check_output(config.output)
    data = config.data
    if data.index:
        rows = read_index(data.index).accepted.num_rows
    elif data.manifest:
        rows = len(read_manifest(data.manifest, data.gcs_root or "").rows)
    else:
        expected = "data.manifest=manifest.tsv, or data.index=volumes.parquet"
        raise UserError("nothing to train on", key="data.manifest", expected=expected)
    check_judged_on_volumes(config)
    check_tuning(config)
    begun = _rows_of_run(config)
    resolved = resolve_config(config, begun or rows)
    if begun is not None:
        check_same_run("oct", resolved)


def check_judged_on_volumes(config: PretrainOctConfig) -> None:
    """UserError for an evaluator's dataset of images, which an encoder of volumes cannot see."""
    for i, plugin in enumerate(config.tuning.plugins if config.tuning.enable else ()):
        for name, dataset in plugin.datasets.items():
            if not dataset.volumes:
                key = f"tuning.plugins[{i}].datasets.{name}.volumes"
                message, expected = "an encoder of volumes is judged on volumes", "what ray_jobs.index_oct wrote"
                raise UserError(message, key=key, found=dataset.manifest_csv, expected=expected)


def resolve_config(config: PretrainOctConfig, volumes: int) -> PretrainOctConfig:
    """The config with the global batch fixed (that of the run it resumes, if it does) and the budget in images."""
    known = recorded_identity(config).get("optimization.global_batch")
    return resolve(config, config.scaling.ranks, volumes, known)


def rehearse(config: PretrainOctConfig) -> None:
    """MissingFile where volumes that the manifest or the index lists are not there."""
    from oct.indexing.file_lists import select
    from oct.indexing.index_file import read_index
    from oct.indexing.manifest import of_devices, read_manifest

    data = config.data
    if data.index:
        index = read_index(data.index)
        source, key, root = data.index, "data.index", data.gcs_root or index.root
        chosen = select(index, devices=data.devices, regions=data.regions, min_frames=data.min_frames)
        names = chosen["path"].to_pylist()
    else:
        manifest = of_devices(read_manifest(str(data.manifest), data.gcs_root or ""), data.devices)
        source, key, root = str(data.manifest), "data.manifest", manifest.root
        names = [row.path for row in manifest.rows]
    tell((check_files([f"{root.rstrip('/')}/{name}" for name in names], source, key), "files"))


def _rows_of_run(config: PretrainOctConfig) -> int | None:
    """The number of volumes of the run that is resumed, if its plan is still there."""
    from pathray.data.plan import Plan
    from pathray.store.storage import Storage

    if checkpoint_to_resume(config) is None:
        return None
    try:
        return Plan.open(Storage.of(str(config.output)).join(PLAN)).rows
    except UserError:  # lost: it is built again
        return None


def _outputs_if_finished(config: PretrainOctConfig) -> Outputs | None:
    """The outputs of a run that has seen its budget, of volumes that its own plan counts."""
    if (rows := _rows_of_run(config)) is None:
        return None
    done = outputs_if_finished(config, int(resolve_config(config, rows).optimization.total_images or 0), BUDGET)
    return None if done is None else Outputs({**done.paths, **evaluation_paths(config)})


def prepare(config: PretrainOctConfig) -> Plan:
    """The plan: that of the run that is resumed, where the files now are, else of the volumes that there are now,
    indexed where they have not been."""
    from oct.plan import identity, relocate
    from pathray.store.storage import Storage

    root = Storage.of(str(config.output))
    folder = plan_folder(root)
    plan = reopen_plan(config, root, folder, identity)
    if plan is not None:
        log.info("resuming with the volumes that this run was started with")
        plan = relocate(plan, config.data.gcs_root or str(plan.meta["root"]), folder)
    else:
        plan = _build_plan(config, folder)
    plan = share_plan(plan, folder, root)
    log.info("%s volumes", f"{plan.rows:,}")
    return plan


def _build_plan(config: PretrainOctConfig, folder: str) -> Plan:
    """A plan of the volumes that there are now, in `folder` when the run, if one is resumed, may have it."""
    from oct.indexing.person_splits import read_persons
    from oct.plan import build_plan, identity

    data, index = config.data, _index(config)
    persons = read_persons(data.split_file, data.split) if data.split_file else None
    validates = data.split_file and config.validation.volumes
    held_out = read_persons(str(data.split_file), config.validation.split) if validates else ()

    paths = _listed_files(config, index)

    def build(place: str) -> Plan:
        return build_plan(
            index,
            place,
            devices=data.devices,
            regions=data.regions,
            persons=persons,
            paths=paths,
            held_out=held_out,
            min_frames=data.min_frames,
            root=data.gcs_root or "",
        )

    def check_plan(plan: Plan) -> None:
        check_same_run("oct", resolve_config(config, plan.rows), identity(plan))

    return replace_plan(config, folder, build, check_plan)


def _listed_files(config: PretrainOctConfig, index: str) -> list[str] | None:
    """The volumes of `data.file_list`, and at most `data.max_volumes` of an index; None: all."""
    from oct.indexing.file_lists import read_file_list
    from oct.indexing.index_file import read_index

    data = config.data
    names = read_file_list(data.file_list) if data.file_list else None
    if data.max_volumes is None or not data.index:  # of a manifest, they were chosen when it was indexed
        return names
    return evenly(names or read_index(index).accepted["path"].to_pylist(), data.max_volumes)


def evenly(items: Sequence[T], most: int | None) -> list[T]:
    """At most `most` of the items, evenly spaced."""
    if most is None or len(items) <= most:
        return list(items)
    return [items[i * len(items) // most] for i in range(most)]


def _index(config: PretrainOctConfig) -> str:
    """The index of the volumes, made or brought up to date on the running Ray below the output folder."""
    from oct.indexing.index_report import check_readable
    from oct.indexing.manifest import of_devices, read_manifest
    from pathray.store.storage import Storage
    from ray_jobs import index_oct

    data = config.data
    if data.index:
        return data.index
    output = str(Storage.of(str(config.output)).join(INDEXES, VOLUME_INDEX))
    settings = index_oct.IndexOctConfig(
        manifest=str(data.manifest),
        root=data.gcs_root or "",
        output=output,
        grid_shape=data.image_size,
        grid_spacing_mm=data.spacing_mm,
    )
    manifest = of_devices(read_manifest(settings.manifest, settings.root), data.devices)
    manifest = replace(manifest, rows=tuple(evenly(manifest.rows, data.max_volumes)))
    index = index_oct.build(settings, manifest, index_oct.previous_rows(settings, manifest))
    index_oct.report(settings, index, settings.manifest)
    check_readable(index, data.max_corrupt_fraction, "data.max_corrupt_fraction")
    return output


def announce(asked: PretrainOctConfig, config: PretrainOctConfig, plan: Plan) -> dict[str, float]:
    """Log the budget, and per device how much of the grid is image; budget and number of volumes as metrics."""
    from oct.indexing.statistics import statistics, text_table

    images = int(config.optimization.total_images or 0)
    batch = int(config.optimization.global_batch or 0)
    passes = images / plan.rows
    if config.validation.volumes and not config.data.split_file:
        log.warning("all volumes are trained on: without data.split_file nobody is held out, and there is no val/loss")
    log.info("%s steps of %s volumes: %.2f passes", f"{images // batch:,}", batch, passes)
    trained = plan.sources.take(plan.column("source"))
    for line in text_table(statistics(trained, config.data.grid)).splitlines():
        log.info("%s", line)
    return {"volume_count": float(plan.rows), "volume_passes_total": passes}


JOB = Pretraining(
    science="oct",
    locate=make_paths_absolute,
    check=check,
    rehearse=rehearse,
    outputs_if_finished=_outputs_if_finished,
    prepare=prepare,
    resolve=resolve_config,
    total_images=lambda config: int(config.optimization.total_images or 0),
    announce=announce,
)

if __name__ == "__main__":
    job(main, PretrainOctConfig, CONFIGS_DIR)
