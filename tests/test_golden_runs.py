"""Runs that an earlier version wrote: each science resumes them as the same run, and loads their artifacts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pathray.data.plan import Plan
from pathray.device import Device
from pathray.nn.vit import PRESETS
from pathray.run.resume import check_resumable
from pathray.store import checkpoint
from pathray.store.committed import read_committed
from pathray.train.state import TrainState
from tests.builders.runs import golden


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    monkeypatch.setitem(PRESETS, "vit_tiny", dict(golden.NARROW))


@pytest.mark.parametrize("science", golden.SCIENCES)
def test_a_run_of_an_earlier_version_is_resumed_as_the_same_run_and_ends_as_it_did(science, tmp_path):
    folder = golden.FOLDER / science
    plan = Plan.open(folder / "plan", verify=True)
    parts = golden.assembled(science, plan)
    found = read_committed(str(folder / "checkpoint"))
    assert parts.identity["hash"] == found.meta["identity"]["hash"], "another identity: nobody could resume"
    check_resumable(found, parts.identity)
    state = TrainState(parts.recipe, parts.settings, Device.of("cpu"))
    state.load(*checkpoint.load(found.path))
    assert (state.step, state.images_seen) == (golden.HALF, golden.HALF * parts.settings.global_batch)

    stored = golden.unpack(np.load(folder / "batches.npz"))
    golden.train(parts, lambda start: iter(stored), state, golden.STEPS)
    parts.export(parts.recipe, str(tmp_path / "final"), {"images_seen": state.images_seen})
    names = sorted(p.relative_to(folder / "final") for p in (folder / "final").rglob("*.safetensors"))
    assert names
    for name in names:
        was, now = load_file(folder / "final" / name), load_file(tmp_path / "final" / name)
        assert was.keys() == now.keys()
        for tensor, before in was.items():
            torch.testing.assert_close(now[tensor], before, rtol=1e-3, atol=1e-4, msg=f"{name} {tensor}")


def test_artifacts_of_an_earlier_version_are_loaded_as_they_were_written():
    from adios import artifact as mask_models
    from pathray.store.artifact import EncoderArtifact
    from regression import artifact as regressions

    for science in ("ijepath", "adios", "oct"):
        folder = golden.FOLDER / science / "final"
        vit, facts = EncoderArtifact.load(str(folder))
        assert (facts["science"], facts["provenance"]["images_seen"]) == (science, 16)
        same(vit.state_dict(), load_file(folder / "weights.safetensors"))
    folder = golden.FOLDER / "adios" / "mask_model"
    same(mask_models.load(str(folder)).model.state_dict(), load_file(folder / "weights.safetensors"))
    folder = golden.FOLDER / "regression" / "final"
    model = regressions.load(str(folder))
    same(model.net.state_dict(), load_file(folder / "weights.safetensors"))
    assert model.normaliser.genes == ("y0", "y1", "y2")


def same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
