"""Features of frozen backbones for a regression's images, through a pool of actors; what is kept already is not redone.

A module of the regression jobs, not one of its own. Ray must be running.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pathray.config.sections import ScalingConfig
from pathray.errors import UserError
from ray_jobs.extract.actors import DIED, map_in_threads, state_of

if TYPE_CHECKING:
    from pathray.data.plan import Plan
    from regression.config import RunConfig
    from regression.features import FeatureFolder

log = logging.getLogger(__name__)
_LOCK = threading.Lock()


class FeaturesStopped(Exception):
    """The run was asked to stop while its features were computed; the parts that are done stay."""


@dataclass(frozen=True)
class Work:
    """Runs in an actor: builds the network, and gives the function that makes a part."""

    config: RunConfig
    folder: FeatureFolder
    kind: str
    threads: int

    def __call__(self) -> Callable[[int], int]:
        import torch

        from pathray.device import Device
        from regression.features import features_of
        from regression.model import build_net, preprocessing

        torch.set_num_threads(self.threads)
        device, config = Device.of(self.kind), self.config
        net = build_net(config).requires_grad_(False).eval().to(device.torch_device)
        given, batch = preprocessing(config), config.eval.batch_size

        def make(part: int) -> int:
            paths = self.folder.paths_of(part)
            made = features_of(net, given, paths, device, batch_size=batch, threads=self.threads)
            self.folder.write(part, made)
            return len(paths)

        return make


def ensure_features(
    config: RunConfig, plan: Plan, scaling: ScalingConfig, what: str, stopped: Callable[[], bool] = lambda: False
) -> FeatureFolder:
    """The features of all rows of `plan.sources` by the backbone of `config` as it starts, below its output.

    UserError when the process that makes a part dies twice; FeaturesStopped once `stopped`, which is asked after every
    part.
    """
    from pathray.store.storage import Storage
    from regression.features import feature_folder

    paths = plan.sources["path"].to_pylist()
    root = Storage.of(str(config.output)).join("features")
    folder = feature_folder(root, config, paths, map_in_threads(state_of, paths))
    with _LOCK:  # the folds of one driver want the same ones at the same time
        _compute(folder, config, scaling, what, stopped)
    return folder


def _compute(
    folder: FeatureFolder, config: RunConfig, scaling: ScalingConfig, what: str, stopped: Callable[[], bool]
) -> None:
    from pathray.reports.progress import Progress
    from ray_jobs.extract.actor_map import ActorMap
    from ray_jobs.train.resources import resolve_accelerator

    missing = folder.missing()
    if stopped():
        raise FeaturesStopped
    if not missing:
        return
    kind = resolve_accelerator(scaling.accelerator, scaling.autoscaling)
    kind = kind if kind == "cuda" else "cpu"  # an XLA device would be one more compiled program for one pass
    gpus = float(scaling.gpus_per_worker) if kind == "cuda" else 0.0
    work = Work(config, folder, kind, scaling.threads_per_worker or max(1, int(scaling.cpus_per_worker)))
    pool = ActorMap(scaling.ranks, float(scaling.cpus_per_worker), gpus)
    with Progress(sum(len(folder.paths_of(part)) for part in missing), f"features {what}", "images") as progress:
        for number, done in pool(work, missing):
            if done is None:
                raise UserError(DIED, file=folder.paths_of(missing[number])[0], key="features")
            progress.update(done)
            if stopped():
                raise FeaturesStopped


def probe_config(config: RunConfig, artifact: str) -> RunConfig:
    """`config` with another encoder in the place of its backbone, seeing images of the size it was trained on."""
    from pathray.features.encoder import EncoderSpec
    from regression.config import ModelConfig

    size = EncoderSpec.of("probe", artifact).size_px
    model = ModelConfig(backbone="artifact", artifact=artifact, frozen=True)
    return replace(config, model=model, data=replace(config.data, image_size=size, mean=None, std=None))
