"""Runs on small volumes without Ray: resume to the bit, on one rank and two, the end by collapse, what is left."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from oct.assembly import build
from oct.config import CollapseConfig
from oct.curves import CURVES
from pathray.device import Device
from pathray.nn.vit import PRESETS
from pathray.run import train
from pathray.store.artifact import EncoderArtifact
from pathray.store.checkpoint import latest, load
from pathray.train.collapse import FeaturesCollapsed
from tests.builders.oct import oct_ranks
from tests.builders.oct.volumes import SmallReader, write_plan
from tests.builders.runs.ranks import run_ranks
from tests.builders.runs.weights import newest_weights


@pytest.fixture(scope="module", autouse=True)
def narrow():
    before = PRESETS["vit_micro"]
    yield
    PRESETS["vit_micro"] = before


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    return write_plan(tmp_path_factory.mktemp("oct") / "plan")


@pytest.fixture(scope="module")
def alone(plan, tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    return folder, oct_ranks.everything(Device.of("cpu"), plan.path, str(folder))


@pytest.fixture(scope="module")
def together(plan, tmp_path_factory):
    folder = tmp_path_factory.mktemp("together")
    return folder, run_ranks(2, oct_ranks.everything, folder / "ranks", plan.path, str(folder))


def rows(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_stopped_and_resumed_run_ends_bit_equal_to_an_undisturbed_one(alone):
    folder, found = alone
    assert found["ends"] == ["budget", "stopped", "budget"]
    assert newest_weights(folder / "whole", "oct") == newest_weights(folder / "parts", "oct")
    assert [row["images_seen"] for row in rows(folder / "parts")] == list(range(4, 33, 4))
    held_out = [[row["val/loss"] for row in rows(folder / run) if "val/loss" in row] for run in ("whole", "parts")]
    assert len(held_out[0]) == 4 and held_out[0] == held_out[1] and min(held_out[0]) > 0


def test_two_ranks_too(together):
    folder, found = together
    assert [one["ends"] for one in found] == 2 * [["budget", "stopped", "budget"]]
    assert newest_weights(folder / "whole", "oct") == newest_weights(folder / "parts", "oct")


def test_two_ranks_have_the_gradient_and_the_loss_of_one(alone, together):
    for name, (gradient, loss) in alone[1]["gradients"].items():
        for found in together[1]:
            torch.testing.assert_close(found["gradients"][name][0], gradient, rtol=1e-9, atol=1e-12)
            assert found["gradients"][name][1] == pytest.approx(loss, rel=1e-12), name


def test_another_number_of_ranks_learns_from_the_same_units_nearly_the_same(alone, together):
    """Stochastic depth is drawn per rank, so weights differ; the held-out loss at the end hardly does."""
    last = [rows(folder / "whole")[-1] for folder, _ in (alone, together)]
    assert last[0]["val/loss"] == pytest.approx(last[1]["val/loss"], rel=0.1)
    assert last[0]["lr"] == last[1]["lr"] and last[0]["ema"] == last[1]["ema"] == 1.0


def test_collapse_ends_all_ranks_at_the_same_step_with_one_verdict(alone, together):
    first = [one["collapsed"] for one in together[1]]
    assert all(text.startswith("FeaturesCollapsed") and "3 log lines in a row" in text for text in first)
    figures = [text.partition("found: ")[2] for text in first]
    assert figures[0] == figures[1] != ""
    assert "3 log lines" in alone[1]["collapsed"]
    assert not (alone[0] / "collapsed" / "encoder").exists()


def test_a_collapsed_run_names_the_newest_checkpoint_from_before(plan, tmp_path):
    """Good up to 16 images, where a checkpoint is kept; from then on every line is bad."""
    run = tmp_path / "run"
    assert oct_ranks.trained(Device.of("cpu"), plan.path, str(run), stop_after=4)["end"] == "stopped"
    good = latest(str(run / "checkpoints"), "oct")
    images = good.meta["images_seen"]
    assert load(good.path)[0]["model.collapse.counts"].tolist() == [0, images]
    with pytest.raises(FeaturesCollapsed) as error:
        oct_ranks.trained(Device.of("cpu"), plan.path, str(run), collapse=CollapseConfig(lines=2, min_std=1e9))
    assert good.path in str(error.value) and f"{images} images" in str(error.value)
    assert latest(str(run / "checkpoints"), "oct", at_most=images - 1) is None


def test_without_a_checkpoint_from_before_the_collapse_it_says_so(alone):
    assert "no checkpoint from before" in alone[1]["collapsed"]


def test_the_loop_updates_the_teacher_at_every_step_of_the_optimizer(plan, tmp_path):
    """Its weights after each tick are the average of the students so far, by the cosine of the step, in float64."""
    seen: list[tuple[np.ndarray, np.ndarray]] = []

    class Look:
        def observe(self, tick):
            modules = tick.state.recipe.modules
            pair = (modules[name].get_parameter("patch_embed.proj.weight").detach() for name in ("teacher", "student"))
            seen.append(tuple(weight.double().numpy().copy() for weight in pair))
            return {}

    config = oct_ranks.run_config(1)
    parts = build(config, plan, 1, SmallReader(config), SmallReader(config), "digest")
    parts.watch = Look()
    expected = parts.recipe.student.get_parameter("patch_embed.proj.weight").detach().double().numpy().copy()
    train(parts, plan, str(tmp_path / "run"), Device.of("cpu"))
    assert len(seen) == 8
    for step, (teacher, student) in enumerate(seen):
        m = 1.0 - 0.004 * (1 + np.cos(np.pi * step / 7)) / 2
        expected = m * expected + (1 - m) * student
        assert np.abs(teacher - expected).max() < 1e-7
        assert np.abs(teacher - student).max() > 1e-6


def test_a_run_leaves_the_teacher_as_an_encoder(alone):
    folder, _ = alone
    vit, description = EncoderArtifact.load(str(folder / "whole" / "encoder"))
    tensors, _ = load(latest(str(folder / "whole" / "checkpoints"), "oct").path)
    assert all(torch.equal(value, tensors[f"model.teacher.{name}"]) for name, value in vit.state_dict().items())
    assert description["science"] == "oct" and description["provenance"]["images_seen"] == 32


def test_every_curve_has_its_figures_in_the_metrics(alone):
    found = {key for row in rows(alone[0] / "whole") for key in row}
    wanted = {key for panel in CURVES for key, _ in panel.series}
    assert wanted - found == set()
    assert all(np.isfinite(v) for row in rows(alone[0] / "whole") for v in row.values() if isinstance(v, float))
