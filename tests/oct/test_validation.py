"""The held-out loss: which volumes, when, their mean however they are shared out, and unreadable ones."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from oct.config import ValidationConfig
from oct.recipe import OctRecipe
from oct.validation import HeldOutLoss, chosen_sources
from pathray.device import Device
from pathray.errors import UnreachableUnit
from tests.builders.oct.volumes import SmallReader, micro, small_config, unit, write_plan

SOURCES = [12, 13, 14, 15, 16]


def held_out(config, device=None, broken=()) -> HeldOutLoss:
    return HeldOutLoss(config, OctRecipe(config), SmallReader(config, broken), SOURCES, device or Device.of("cpu"))


def one_by_one(config) -> list[float]:
    recipe = OctRecipe(config)
    recipe.modules.eval()
    losses = []
    for place, source in enumerate(SOURCES):
        batch = SmallReader(config).collate([unit(config, source, place)])
        losses.append(float(recipe.validation_losses({k: torch.from_numpy(v) for k, v in batch.items()})))
    return losses


def test_at_most_the_wanted_number_of_held_out_volumes_is_used(tmp_path):
    plan = write_plan(tmp_path / "plan", rows=12, held_out=4)
    assert chosen_sources(plan, ValidationConfig(), 0) == [12, 13, 14, 15]
    three = chosen_sources(plan, ValidationConfig(volumes=3), 0)
    assert (
        len(three) == 3
        and set(three) < {12, 13, 14, 15}
        and three == chosen_sources(plan, ValidationConfig(volumes=3), 0)
    )
    assert chosen_sources(plan, ValidationConfig(volumes=0), 0) == []


def test_held_out_volumes_come_from_all_devices(tmp_path):
    """Sources are sorted by device: of 4 devices with 25 volumes each, 20 draws have about 5 of each."""
    plan = write_plan(tmp_path / "plan", rows=12, held_out=100)
    counts = np.bincount([(source - 12) // 25 for source in chosen_sources(plan, ValidationConfig(volumes=20), 3)])
    assert len(counts) == 4 and counts.min() >= 2


def test_storage_that_is_away_loses_no_held_out_volume(monkeypatch):
    config, calls = small_config(), []
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    watch = held_out(config)
    read = watch.reader.read

    def away_at_first(unit, position, attempt):
        calls.append(position)
        if len(calls) == 1:
            raise UnreachableUnit("volume12", "503")
        return read(unit, position, attempt)

    monkeypatch.setattr(watch.reader, "read", away_at_first)
    assert watch.measure(2) == pytest.approx(np.mean(one_by_one(config)), rel=1e-5)
    assert len(calls) == len(SOURCES) + 1


def test_on_xla_a_batch_is_that_of_all_hosts_and_so_are_its_sums():
    """Two hosts whose device joins their batches, as SPMD does."""
    config, batches = small_config(), []
    hosts = [Device("cpu", torch.device("cpu"), rank, 2) for rank in range(2)]
    for host in hosts:
        batches.append(list(held_out(config, host)._batches(2)))
    joined = [{name: np.concatenate([a[name], b[name]]) for name in a} for a, b in zip(*batches, strict=True)]
    watch = held_out(config)
    watch.kept = joined
    assert watch.measure(2) == pytest.approx(np.mean(one_by_one(config)), rel=1e-5)


@pytest.mark.parametrize("micro_batch", [1, 2, 4])
def test_it_is_the_mean_over_the_volumes_in_any_micro_batch(micro_batch):
    config = small_config()
    assert held_out(config).measure(micro_batch) == pytest.approx(np.mean(one_by_one(config)), rel=1e-5)


def test_ranks_share_the_volumes_out():
    """Two ranks, one after the other: what each adds to the sums."""
    config, sums = small_config(), []
    for rank in range(2):
        device = Device("cpu", torch.device("cpu"), rank, 2)
        object.__setattr__(device, "gather_objects", lambda value: sums.append(value) or [value])
        held_out(config, device).measure(2)
    assert [count for _, count in sums] == [3, 2]
    assert sum(loss for loss, _ in sums) / 5 == pytest.approx(np.mean(one_by_one(config)), rel=1e-5)


def test_a_volume_that_cannot_be_read_is_left_out_and_said(caplog):
    config = small_config()
    found = held_out(config, broken=(13, 16)).measure(2)
    losses = one_by_one(config)
    assert found == pytest.approx(np.mean([losses[i] for i in (0, 2, 3)]), rel=1e-5)
    assert "volume13" in caplog.text
    assert np.isnan(held_out(config, broken=tuple(SOURCES)).measure(2))


def test_it_is_measured_on_its_cadence_and_at_the_end_and_leaves_training_mode_as_it_was():
    config = small_config(validation=ValidationConfig(every=16))
    watch = held_out(config)
    watch.recipe.modules["predictor"].train()
    state = SimpleNamespace(settings=SimpleNamespace(global_batch=4, micro_batch=2, precision="fp32"))

    def tick(images, end=None):
        return SimpleNamespace(images_seen=images, end=end, state=state)

    assert [sorted(watch.observe(tick(n))) for n in (4, 16, 20)] == [[], ["val/loss"], []]
    assert sorted(watch.observe(tick(28, "budget"))) == ["val/loss"]
    assert watch.recipe.modules["predictor"].training and watch.recipe.student.training
    assert micro(config, range(1))["image"].shape == (1, 8, 32, 32)
