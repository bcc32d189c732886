"""MIL trainings on small bags without Ray: resume to the bit, what a run may know, what it leaves."""

import json

import numpy as np
import pytest
import torch

from mil.artifact import load
from mil.data import BagReader
from mil.plan import rows_of
from mil.predict import predict_slides
from pathray.data.plan import Plan
from pathray.device import Device
from pathray.store import checkpoint
from pathray.store.committed import list_committed
from tests.builders import mil
from tests.builders.runs.ranks import run_ranks
from tests.builders.runs.weights import newest_weights, state_hash

CPU = Device.of("cpu")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return mil.write_cohort(tmp_path_factory.mktemp("cohort"), patients=12)


@pytest.fixture(scope="module")
def plan(root, tmp_path_factory):
    return mil.fold_plan(root, tmp_path_factory.mktemp("plan") / "plan")


@pytest.fixture(scope="module")
def alone(root, plan, tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    return folder, mil.stopped_and_resumed(CPU, plan.path, str(root), str(folder))


def all_weights(run):
    """(name, images seen, digest of the tensors) of every checkpoint: the best states and the newest."""
    found = [(one.name, *checkpoint.load(one.path)) for one in list_committed(f"{run}/checkpoints")]
    assert len(found) > 1
    return sorted((name, meta["images_seen"], state_hash(tensors)) for name, tensors, meta in found)


def rows(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_stopped_and_resumed_training_ends_bit_equal_to_an_undisturbed_one(alone):
    folder, ends = alone
    assert ends == ["budget", "stopped", "budget"]
    assert newest_weights(folder / "whole", "mil") == newest_weights(folder / "parts", "mil")
    held_out = [[row["val/loss"] for row in rows(folder / run) if "val/loss" in row] for run in ("whole", "parts")]
    assert len(held_out[0]) == 6 and held_out[0] == held_out[1]


@pytest.mark.heavy
def test_two_ranks_too(root, plan, alone, tmp_path):
    found = run_ranks(2, mil.stopped_and_resumed, tmp_path / "ranks", plan.path, str(root), str(tmp_path))
    assert found == 2 * [["budget", "stopped", "budget"]]
    assert newest_weights(tmp_path / "whole", "mil") == newest_weights(tmp_path / "parts", "mil")
    seen = [[row["images_seen"] for row in rows(folder / "whole")] for folder in (tmp_path, alone[0])]
    assert seen[0] == seen[1]


def test_labels_of_test_slides_change_no_checkpoint(root, plan, alone, tmp_path):
    other = mil.fold_plan(root, tmp_path / "plan", permute_test=True)
    assert mil.trained(CPU, other.path, str(root), str(tmp_path / "run"))["end"] == "budget"
    assert all_weights(tmp_path / "run") == all_weights(alone[0] / "whole")


def test_the_exported_model_predicts_as_the_trained_one_and_whole_bags_alone(plan, alone):
    trained = load(str(alone[0] / "whole" / "encoder"))
    assert trained.target.classes == ("normal", "tumor") and trained.target.dim == 8
    reader, chosen = BagReader(plan, seed=0, most=3), rows_of(plan, "test")
    found = predict_slides(trained.net, reader, chosen, CPU, threads=1)
    assert found.values.shape == (len(chosen), 2) and found.embeddings.shape == (len(chosen), 16)
    np.testing.assert_allclose(found.values.sum(axis=1), 1, atol=1e-6)
    bag = reader.whole().read({"source": int(chosen[1])}, 0, 0)
    out = trained.net(torch.tensor(bag["features"])[None].float(), None, torch.tensor(bag["coords"])[None])
    np.testing.assert_allclose(found.values[1], out.logits.softmax(1)[0].numpy(), atol=1e-6)


def test_the_loss_falls(alone):
    losses = [row["loss"] for row in rows(alone[0] / "whole")]
    assert np.mean(losses[-6:]) < np.mean(losses[:6]) * 0.95


def test_balanced_sampling_gives_every_class_an_equal_share(root, plan):
    from mil.assembly import order_of

    config = mil.run_config(root, data={"sampling": "balanced"})
    assert order_of(config, plan).shares == {"normal": 0.5, "tumor": 0.5}


def test_a_frozen_aggregator_is_not_trained(root, plan):
    from mil.config import TrainingConfig
    from mil.plan import target_of
    from mil.recipe import MILRecipe

    config = mil.run_config(root)
    config.training = TrainingConfig(freeze_aggregator=True)
    recipe = MILRecipe(config, target_of(Plan.open(plan.path)))
    assert recipe.params["model"] and all(name.startswith("net.head") for name, _ in recipe.params["model"])


def test_a_diverged_model_is_no_better_than_any_other():
    from mil.validation import scores_of

    good = scores_of(np.array([0.0, 1.0]), np.array([[0.9, 0.1], [0.2, 0.8]]), "classification")
    bad = scores_of(np.array([0.0, 1.0]), np.full((2, 2), np.nan), "classification")
    assert bad.keys() == good.keys() and not np.isfinite(list(bad.values())).any()
    assert good["auc"] == 1 and good["loss"] == pytest.approx(-np.log([0.9, 0.8]).mean())
