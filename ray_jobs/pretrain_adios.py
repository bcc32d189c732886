"""ADIOS pretraining: from a folder of zipped patches (or its index) to an encoder and a mask model, through Ray.

    python -m ray_jobs.pretrain_adios --config smoke data_path=patches output=outputs/adios total_iterations=200

`data_path` is a folder of zip archives or a dataset_index.pkl, which are indexed first, or an index that
ray_jobs.index_patches wrote. Training resumes from the newest checkpoint of the output folder. SIGTERM and Ctrl-C
checkpoint and end cleanly; the same command resumes the run.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from adios.config import CONFIGS_DIR, RunConfig, resolve
from pathray.config.load import Loaded, placement
from pathray.errors import UserError
from pathray.run.layout import INDEXES
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
    evaluation_paths,
    outputs_if_finished,
    plan_folder,
    recorded_identity,
)

if TYPE_CHECKING:
    from pathray.data.plan import Plan
    from pathray.store.storage import Storage

log = logging.getLogger(__name__)
BUDGET = "total_iterations, total_images"


@dataclass
class PretrainAdiosConfig(RunConfig):
    """A run config, and where it runs."""

    runtime: RuntimeConfig = placement(default_factory=RuntimeConfig)


def main(loaded: Loaded[PretrainAdiosConfig]) -> Outputs | None:
    return pretrain(JOB, loaded)


def make_paths_absolute(config: PretrainAdiosConfig) -> PretrainAdiosConfig:
    """The config with every path made absolute: a worker runs in another folder than the command."""
    data = replace(config.data, archives_root=absolute(config.data.archives_root))
    done: PretrainAdiosConfig = training_jobs.make_paths_absolute(
        replace(config, output_dir=None), data_path=absolute(config.data_path), data=data
    )
    return done


def check(config: PretrainAdiosConfig) -> None:
    """UserError, before Ray is started, for what can be told of the config, of the folder of archives and of the run
    that is resumed."""
    from adios.patches.index import PatchIndex, archives_of
    from adios.settings import check_networks

    check_output(config.output)
    if not config.data_path:
        expected = "data_path=FOLDER of zips, a dataset_index.pkl, or an index"
        raise UserError("nothing to train on", key="data_path", expected=expected)
    if config.data_path.endswith(".parquet"):
        PatchIndex.open(config.data_path)
    else:
        archives_of(config.data_path)
    check_tuning(config)
    config = resolve_config(config)
    check_networks(config)
    check_same_run("adios", config)


def resolve_config(config: PretrainAdiosConfig, patches: int = 0) -> PretrainAdiosConfig:
    """The config with the global batch fixed (that of the run it resumes, if it does) and the budget in images."""
    return resolve(config, config.scaling.ranks, recorded_identity(config).get("global_batch"))


def rehearse(config: PretrainAdiosConfig) -> None:
    """MissingFile where archives that an index lists are not there."""
    from adios.patches.index import PatchIndex, archive_path

    path = str(config.data_path)
    root, names = _archives(config)
    units = [(check_files([archive_path(root, name) for name in sorted(names)], path, "data_path"), "archives")]
    if path.endswith(".parquet"):
        units.append((PatchIndex.open(path).rows, "patches"))
    tell(*units)


def _outputs_if_finished(config: PretrainAdiosConfig) -> Outputs | None:
    """The outputs of a run that has seen its budget."""
    from pathray.store.storage import Storage

    mask_model = Storage.of(str(config.output)).at("mask_model")
    ready = resolve_config(config)
    if not mask_model.exists() or (done := outputs_if_finished(config, int(ready.total_images or 0), BUDGET)) is None:
        return None
    return Outputs({**done.paths, "mask_model": mask_model.url, **evaluation_paths(config)})


def prepare(config: PretrainAdiosConfig) -> Any:
    """The plan: that of the run that is resumed, else of the patches that there are now, indexed where they have
    not been. UserError, with the run's own plan left as it is, when the run was begun with others."""
    from pathray.store.storage import Storage

    root = Storage.of(str(config.output))
    folder = plan_folder(root)
    plan = _reopen_plan(config, root, folder)
    if plan is None:
        plan = _build_plan(config, folder)
    plan = share_plan(plan, folder, root)
    log.info("%s patches in %s archives", f"{plan.rows:,}", f"{len(plan.sources):,}")
    return plan


def _reopen_plan(config: PretrainAdiosConfig, root: Storage, folder: str) -> Plan | None:
    """The plan that the run was begun with, when it is still there. Where the archives have moved, it says so.
    UserError when they are not where `data_path` says."""
    from adios.plan import identity, relocate

    if (plan := reopen_plan(config, root, folder, identity)) is None:
        return None
    where, names = _archives(config)
    lost = sorted(set(plan.sources["archive"].to_pylist()) - names)
    if lost:
        message = "archives that this run began with are not here"
        expected = "the patches that it began with, or another output"
        found = f"no {lost[0]}" + (f" and {len(lost) - 1} more" if len(lost) > 1 else "")
        raise UserError(message, file=config.data_path, key="data_path", found=found, expected=expected)
    log.info("resuming with the patches that this run was started with")
    return relocate(plan, where, folder)


def _archives(config: PretrainAdiosConfig) -> tuple[str, set[str]]:
    """Where the archives are, and their names."""
    from adios.patches.index import PatchIndex, archives_of

    path = str(config.data_path)
    if path.endswith(".parquet"):
        index = PatchIndex.open(path)
        root, names = index.root, index.archives()
    else:
        root, archives = archives_of(path)
        names = {archive.name for archive in archives}
    return config.data.archives_root or root, names


def _build_plan(config: PretrainAdiosConfig, folder: str) -> Plan:
    """A plan of the patches that there are now, in `folder` when the run, if one is resumed, may have it."""
    from adios.plan import build_plan, identity

    data, index = config.data, _index(config)
    return replace_plan(
        config,
        folder,
        lambda place: build_plan(index, place, patch_size=data.patch_px, root=data.archives_root or ""),
        lambda plan: check_same_run("adios", resolve_config(config), identity(plan)),
    )


def _index(config: PretrainAdiosConfig) -> str:
    """The index of the patches, made or brought up to date on the running Ray below the output folder."""
    from adios.patches.index import archives_of
    from pathray.store.storage import Storage
    from ray_jobs import index_patches

    path = str(config.data_path)
    if path.endswith(".parquet"):
        return path
    output = str(Storage.of(str(config.output)).join(INDEXES, "patches.parquet"))
    settings = index_patches.IndexPatchesConfig(
        source=path, output=output, max_corrupt_fraction=config.data.max_corrupt_fraction
    )
    index_patches.build(settings, *archives_of(path))
    return output


def announce(asked: PretrainAdiosConfig, config: PretrainAdiosConfig, plan: Plan) -> dict[str, float]:
    """Log the budget; it and the number of patches as metrics."""
    passes = int(config.total_images or 0) / plan.rows
    log.info("%s iterations of %s images: %.2f passes", config.total_iterations, config.global_batch, passes)
    return {"patch_count": float(plan.rows), "patch_passes_total": passes}


JOB = Pretraining(
    science="adios",
    locate=make_paths_absolute,
    check=check,
    rehearse=rehearse,
    outputs_if_finished=_outputs_if_finished,
    prepare=prepare,
    resolve=resolve_config,
    total_images=lambda config: int(config.total_images or 0),
    announce=announce,
    exports=("mask_model",),
)

if __name__ == "__main__":
    job(main, PretrainAdiosConfig, CONFIGS_DIR)
