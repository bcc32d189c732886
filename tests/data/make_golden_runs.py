"""Writes tests/data/golden_runs_v1: each science once, never again. A later version of the formats gets another folder.

python -m tests.data.make_golden_runs
"""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from pathray.data.plan import Plan, PlanWriter
from pathray.data.share import Lookup, rank_rows
from pathray.data.stream import DecodeSettings, stream_batches
from pathray.device import Device
from pathray.nn.vit import PRESETS
from pathray.store import checkpoint
from pathray.train.state import TrainState
from tests.builders.runs import golden


def main() -> None:
    torch.set_num_threads(1)
    PRESETS["vit_tiny"] = dict(golden.NARROW)
    for science in golden.SCIENCES:
        if (golden.FOLDER / science).exists():
            print(f"{science} is there: golden runs are not made again")
            continue
        with tempfile.TemporaryDirectory() as scratch:
            make(science, Path(scratch), golden.FOLDER / science)


def make(science: str, scratch: Path, folder: Path) -> None:
    """Train one golden run in `scratch`, and leave what the tests want in `folder`."""
    plan = PLANS[science](scratch)
    parts = golden.assembled(science, plan)
    seen: list[dict[str, Any]] = []

    def batches(start: int) -> Any:
        settings, lookup = parts.settings, Lookup(plan, parts.order)
        rows = rank_rows(lookup, start, settings.total_images, settings.global_batch, 0, 1, settings.micro_batch)
        for batch in stream_batches(rows, parts.reader, lookup, DecodeSettings(threads=1)):
            seen.append({k: v for k, v in batch.items() if k != "faults"})
            yield seen[-1]

    state = TrainState(parts.recipe, parts.settings, Device.of("cpu"))
    golden.train(parts, batches, state, golden.HALF)
    folder.mkdir(parents=True)
    meta = {**state.meta(), "identity": parts.identity, "science": science}
    saved = checkpoint.save(str(folder), f"{parts.tag}-latest", state.tensors(), meta)
    shutil.move(saved.path, folder / "checkpoint")
    del seen[:]
    golden.train(parts, batches, state, golden.STEPS)
    np.savez_compressed(folder / "batches.npz", **golden.pack(seen))
    parts.export(parts.recipe, str(folder / "final"), {"images_seen": state.images_seen})
    write_plan(plan, scratch, folder / "plan")


def write_plan(plan: Plan, scratch: Path, folder: Path) -> None:
    """The plan with paths that are relative to where it was made."""
    sources = plan.sources
    for number, name in enumerate(sources.column_names):
        values = sources[name].to_pylist()
        if all(isinstance(v, str) and v.startswith(str(scratch)) for v in values):
            sources = sources.set_column(number, name, pa.array([os.path.relpath(v, scratch) for v in values]))
    meta = {k: os.path.relpath(v, scratch) if str(v).startswith(str(scratch)) else v for k, v in plan.meta.items()}
    columns = {name: kind.type for name, kind in plan._types.items()}
    with PlanWriter(folder, columns, sources, meta) as writer:
        writer.append(plan.take(np.arange(plan.rows)))


def ijepath_plan(scratch: Path) -> Plan:
    from ijepath.profile import Profile
    from tests.builders.anchor_catalog import planned
    from tests.builders.cohort import speckled_cohort

    data = golden.ijepath_config().data
    profile = Profile(**{f.name: getattr(data, f.name) for f in fields(Profile)})
    return planned(scratch, speckled_cohort(scratch), profile)


def adios_plan(scratch: Path) -> Plan:
    from adios.patches.index import archives_of
    from adios.patches.index_writer import index_patches
    from adios.plan import build_plan
    from tests.builders.zips import write_folder

    write_folder(scratch / "zips", archives=2, patches=5)
    root, archives = archives_of(str(scratch / "zips"))
    index_patches(root, archives, str(scratch / "index.parquet"), max_corrupt_fraction=0.0)
    return build_plan(str(scratch / "index.parquet"), str(scratch / "plan"), patch_size=32)


def regression_plan(scratch: Path) -> Plan:
    from tests.builders.expression import made

    return made(scratch)[2]


def oct_plan(scratch: Path) -> Plan:
    from oct.indexing.index import index_volumes
    from oct.indexing.index_file import make_index, write_index
    from oct.indexing.manifest import read_manifest
    from oct.plan import build_plan
    from tests.builders.oct.files import person_scans, write_volumes

    manifest = read_manifest(write_volumes(scratch / "volumes", person_scans(6)))
    write_index(make_index(str(scratch / "index.parquet"), manifest.root, list(index_volumes(manifest))))
    return build_plan(str(scratch / "index.parquet"), str(scratch / "plan"))


PLANS = {"ijepath": ijepath_plan, "adios": adios_plan, "regression": regression_plan, "oct": oct_plan}

if __name__ == "__main__":
    main()
