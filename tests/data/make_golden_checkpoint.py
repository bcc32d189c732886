"""Writes tests/data/golden_checkpoint_v1: run once per schema version, never again for an old one.

    python -m tests.data.make_golden_checkpoint

A tiny two-phase run, three steps in; test_checkpoint.py loads it for ever and resumes training from it.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from pathray.device import Device
from pathray.store import checkpoint
from pathray.train.loop import run
from tests.builders.runs.ranks import two_phase_settings
from tests.builders.runs.recipes import TwoPhases, stream

FOLDER = Path(__file__).parent / f"golden_checkpoint_v{checkpoint.SCHEMA_VERSION}"


def main() -> None:
    assert not FOLDER.exists(), f"{FOLDER} is there: a golden checkpoint is not made again"
    torch.set_num_threads(1)
    config = two_phase_settings()
    for tick in run(TwoPhases(), stream(config), config, device=Device.of("cpu")):
        if tick.step == 3:
            tick.state.notes["selection"] = {"best": 0.5}
            identity = {"hash": "0" * 64, "values": {"science": "toy", "seed": 3, "data.hash": "abc"}}
            meta = {**tick.state.meta(), "identity": identity, "science": "toy"}
            saved = checkpoint.save(str(FOLDER), "toy-latest", tick.state.tensors(), meta)
            shutil.move(saved.path, FOLDER / "toy-latest-00000001")
            return


if __name__ == "__main__":
    main()
