"""Out of memory in a step: the same units in smaller micro-batches, in a fresh process. Changes no step's units.

What comes last are smaller units, where the science has some and the user allows them.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch

from pathray.device import Device
from pathray.errors import UserError
from pathray.run.fence import write_guarded
from pathray.run.layout import memory_note
from pathray.run.outcome import RunSettings
from pathray.store.outages import START, through_outages
from pathray.store.storage import Storage
from pathray.train.assembly import Assembly
from pathray.train.settings import LoopSettings

log = logging.getLogger(__name__)
SMALLER_UNITS = "smaller_units"  # a change, next to micro_batch
SAYS_SO = ("can't allocate memory", "not enough memory", "out of memory", "RESOURCE_EXHAUSTED")  # CPU, CUDA, XLA


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an accelerator or the host could not allocate. Only CUDA has an exception of its own for it."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in SAYS_SO)


def smaller_micro_batch(settings: LoopSettings, world: int, devices: int = 1) -> int:
    """The largest smaller micro-batch, of at most half the size, whose W·micro divides G and that a process can divide
    among its `devices`. UserError where there is none, and when the loss needs the whole global batch at once."""
    micro, share = settings.micro_batch, settings.global_batch // world
    if settings.whole_batch:
        message = f"out of memory, and {settings.whole_batch} needs the whole global batch at once"
        found = f"micro_batch {micro}, global_batch {settings.global_batch}, workers {world}"
        expected = "more workers, a smaller global_batch or model, recomputed activations, or more memory"
        raise UserError(message, key="micro_batch", found=found, expected=expected)
    sizes = [size for size in range(devices, micro // 2 + 1, devices) if share % size == 0]
    if not sizes:
        message = "out of memory with a micro-batch of one unit" + (" per device" if devices > 1 else "")
        raise UserError(message, key="micro_batch", found=micro, expected="a smaller model or units, or more memory")
    return max(sizes)


def next_changes(assembly: Assembly, world: int, devices: int = 1) -> dict[str, int]:
    """A smaller micro-batch; where there is none, smaller units if there are any. UserError when there is neither."""
    settings = assembly.settings
    if assembly.smaller is not None and (settings.micro_batch <= devices or settings.whole_batch):
        return {SMALLER_UNITS: 1}
    return {"micro_batch": smaller_micro_batch(settings, world, devices)}


def describe(changes: Mapping[str, int]) -> str:
    """For logs: what an attempt takes.

    >>> describe({"micro_batch": 1, "smaller_units": 1})
    'micro_batch=1 and smaller units'
    """
    parts = [f"micro_batch={changes['micro_batch']}"] if "micro_batch" in changes else []
    return " and ".join([*parts, *(["smaller units"] if SMALLER_UNITS in changes else [])])


def changes_after(
    error: BaseException,
    store: Storage,
    fit_id: str,
    assembly: Assembly,
    device: Device,
    guard: Callable[[], None] = lambda: None,
) -> dict[str, int]:
    """What the next attempt changes. In a group a note says it, and the group ends: the others wait in vain.

    `guard` is called before the note is written: it raises when another start owns the run.
    """
    changes = next_changes(assembly, device.world_size, device.local_devices)
    now = assembly.settings.micro_batch
    log.warning("out of memory with micro_batch=%d; the next attempt takes %s", now, describe(changes))
    if device.world_size > 1:
        note = json.dumps(read_requested_changes(store, fit_id) | changes).encode()
        write_guarded(guard, lambda: store.write_bytes(memory_note(fit_id), note), "what the next attempt changes")
        raise error
    return changes


def with_changes(
    assembly: Assembly,
    store: Storage,
    settings: RunSettings,
    device: Device,
    recorded: Callable[[], Mapping[str, Any]] = dict,
) -> Assembly:
    """The assembly with what an attempt that ran out of memory asked to change; the same on all ranks.

    `recorded`: the notes of the checkpoint that is resumed, asked on rank 0 of a run that may have smaller units: one
    that has trained on them continues on them.
    """
    noted: dict[str, Any] = {}
    if device.rank == 0:
        noted = through_outages(lambda: read_requested_changes(store, settings.fit_id), START)
        if assembly.smaller is not None and through_outages(recorded, START).get(SMALLER_UNITS):
            noted[SMALLER_UNITS] = 1
    changes: dict[str, Any] = settings.changes | device.broadcast_object(noted)
    if changes and device.rank == 0:
        log.warning("an earlier attempt ran out of memory: training with %s", describe(changes))
    if changes.pop(SMALLER_UNITS, 0):
        assert assembly.smaller is not None, "an earlier attempt had smaller units to change to"
        assembly = assembly.smaller()
    return replace(assembly, settings=replace(assembly.settings, **changes))


def check_units(notes: Mapping[str, Any], on_smaller: bool, run: str) -> None:
    """UserError when the checkpoint with these notes is of smaller units and the run is not on them."""
    if notes.get(SMALLER_UNITS) and not on_smaller:
        message = "this run has trained on smaller units since it ran out of memory, which is not allowed now"
        raise UserError(message, file=run, expected="the setting that allowed them, or another output")


def read_requested_changes(store: Storage, fit_id: str) -> dict[str, Any]:
    """What an earlier attempt of this job asked to change; nothing for most."""
    if not store.exists(memory_note(fit_id)):
        return {}
    found: dict[str, Any] = json.loads(store.read_bytes(memory_note(fit_id)))
    return found
