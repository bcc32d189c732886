"""Shared by extraction from slides, images and volumes: actors with encoders, and parallel checks of files."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from pathray.errors import UserError
from pathray.reports.units import describe
from pathray.store.storage import StorageError, file_state
from ray_jobs.extract.actor_map import ActorMap
from ray_jobs.shell.runtime import Session, ray_session

if TYPE_CHECKING:
    from pathray.device import Device
    from pathray.features.encoder import EncoderSpec
    from ray_jobs.extract.config import ExtractConfig

log = logging.getLogger(__name__)
LOOKING_THREADS = 16  # file states are slow on remote storage because of latency
DIED = "the process that worked on this died twice (out of memory, or a crash inside a decoder)"
ABSENT = "absent"
T = TypeVar("T")
R = TypeVar("R")
Row = dict[str, Any]
Extract = Callable[[Any, Mapping[str, Any], Mapping[str, Any], Any, "Device"], Any]
Load = Callable[..., Any]  # (spec, device, pooling=, precision=) → the encoder


@dataclass(frozen=True)
class Work:
    """Called in an actor: loads the encoders with `load` and returns the function that does a job with them.

    A failure of a job becomes `on_failure(job, error)`. A full disk, a failing encoder and a failed assertion are
    raised and end the extraction.
    """

    extract: Extract
    on_failure: Callable[[Any, str], Any]
    specs: Mapping[str, EncoderSpec]
    settings: Any
    kind: str
    threads: int
    load: Load

    def __call__(self) -> Callable[[Any], Any]:
        import torch

        from pathray.device import Device
        from pathray.features.inference import EncodingError

        torch.set_num_threads(self.threads)
        device = Device.of(self.kind)
        how = {"pooling": self.settings.pooling, "precision": self.settings.precision}
        encoders = {name: self.load(spec, device, **how) for name, spec in self.specs.items()}

        def work(job: Any) -> Any:
            try:
                return self.extract(job, self.specs, encoders, self.settings, device)
            except (AssertionError, StorageError):
                raise
            except EncodingError as e:
                if "out of memory" in str(e).lower():
                    raise UserError(str(e), key="batch_size", found=self.settings.batch_size) from e
                raise
            except Exception as e:  # a data error: each decoder has its own exceptions
                return self.on_failure(job, describe(e))

        return work


def over_actors(
    config: ExtractConfig,
    jobs: Sequence[Any],
    extract: Extract,
    on_failure: Callable[[Any, str], Any],
    settings: Any,
    specs: Mapping[str, EncoderSpec],
    load: Load | None = None,
) -> Iterator[tuple[int, Any | None]]:
    """(number of the job, its outcome) as they finish, on the configured Ray; the outcome of a lost job is None.

    load: of encoders; None: of images."""
    if not jobs:
        return
    from pathray.features.encoder import load_encoder

    wants_gpu = config.accelerator == "cuda" or (config.accelerator == "auto" and config.gpus_per_actor is not None)
    actors, gpus = config.actors or 1, (config.gpus_per_actor or 1.0) if wants_gpu else 0.0
    with ray_session(config.runtime, cpus=actors * config.cpus_per_actor, gpus=actors * gpus) as session:
        if config.accelerator == "auto" and session.resources.get("GPU", 0.0) > 0:
            gpus = gpus or 1.0
        actors = min(len(jobs), config.actors or _count_actors(session, config.cpus_per_actor, gpus))
        kind = "cuda" if gpus else "cpu"
        log.info("%d actors with %d CPUs and %g GPUs each, encoders on %s", actors, config.cpus_per_actor, gpus, kind)
        work = Work(extract, on_failure, specs, settings, kind, config.cpus_per_actor, load or load_encoder)
        yield from ActorMap(actors, float(config.cpus_per_actor), gpus)(work, jobs)


def _count_actors(session: Session, cpus: int, gpus: float) -> int:
    """The number of actors that fit the CPUs and GPUs; in an embedded Ray only physical CPUs count."""
    have = session.resources.get("CPU", 1.0)
    if session.embedded:
        have = min(have, float(os.cpu_count() or 1))
    fits = int(have // cpus)
    if gpus:
        fits = min(fits, int(session.resources.get("GPU", 0.0) / gpus + 1e-9))
    return max(1, fits)


def map_in_threads(look: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """The results of `look` for all items, in order, computed in threads: for requests to storage."""
    with ThreadPoolExecutor(LOOKING_THREADS) as pool:
        return list(pool.map(look, items))


def state_of(path: str) -> str:
    """The state of a file (pathray.store.storage.file_state); ABSENT if it cannot be read."""
    try:
        return file_state(path)
    except Exception:  # the error is reported when the file is read
        return ABSENT
