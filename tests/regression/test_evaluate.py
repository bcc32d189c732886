"""Evaluation over workers is exact; what is reported is in the targets' own units; a collapsed model scores 0."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats

from pathray.device import Device
from pathray.errors import UserError
from regression.assembly import assemble
from regression.config import EvalConfig, resolve
from regression.evaluate import Evaluation, join_parts, metrics, predict, share, validator, write_csv, write_parquet
from regression.plan import normaliser, rows_of, targets
from regression.recipe import RegressionRecipe
from tests.builders.expression import made, run_config
from tests.builders.runs.ranks import run_ranks

CPU = Device.of("cpu")


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_every_row_is_evaluated_once_whatever_their_number_and_the_workers(world):
    for n in range(1, 41):
        rows = np.random.default_rng(n).permutation(100)[:n]
        shares = [share(rows, rank, world) for rank in range(world)]
        assert sorted(np.concatenate(shares)) == sorted(rows) and max(map(len, shares)) - min(map(len, shares)) <= 1
        parts = [(own, 2.0 * own[:, None].astype(np.float32)) for own in reversed(shares)]
        assert np.array_equal(join_parts(rows, parts)[:, 0], 2 * rows)


def test_a_row_that_is_lost_or_doubled_is_noticed():
    rows, values = np.arange(3), np.zeros((3, 1), np.float32)
    for wrong in (rows[:2], np.array([0, 1, 1])):
        with pytest.raises(AssertionError, match="lost or duplicated"):
            join_parts(rows, [(wrong, values[: wrong.size])])


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    plan = made(tmp_path_factory.mktemp("expression"))[2]
    config = resolve(run_config(batch_size=4, grad_accum_steps=1, images=8), 1, plan.rows)
    return SimpleNamespace(plan=plan, config=config, recipe=RegressionRecipe(config, normaliser(plan)))


def test_predictions_are_one_rows_own_and_in_the_targets_units(world):
    rows = rows_of(world.plan, "test")[::-1]
    got = predict(world.recipe, world.plan, rows, CPU, 4)
    reader = assemble(world.config, world.plan, 1).reader
    for row, predicted in zip(rows, got, strict=True):
        pixels = torch.tensor(reader.read({"source": row}, 0, 0)["image"][None])
        with torch.no_grad():
            z = world.recipe.net.eval()(world.recipe.inputs(pixels)).numpy()[0]
        scale = normaliser(world.plan)
        assert predicted == pytest.approx(z * scale.std + scale.mean, abs=1e-5)


def test_several_workers_say_what_one_does(world):
    rows = rows_of(world.plan, "test")
    whole = predict(world.recipe, world.plan, rows, CPU, 4)

    class Rank:
        """One of three: its own share, and the other two's as they would come in."""

        torch_device, world_size, rank = CPU.torch_device, 3, 1

        def gather_objects(self, own):
            others = [(share(rows, r, 3), normaliser(world.plan).apply(whole[r::3]).astype(np.float32)) for r in (0, 2)]
            assert np.array_equal(own[0], share(rows, 1, 3))
            return [others[0], own, others[1]]

    assert predict(world.recipe, world.plan, rows, Rank(), 2) == pytest.approx(whole, abs=1e-5)


def test_an_image_that_cannot_be_read_ends_an_evaluation(world, monkeypatch):
    columns = world.plan.sources
    paths = ["/none.png"] * columns.num_rows
    broken = columns.set_column(columns.column_names.index("path"), "path", [paths])
    monkeypatch.setattr(world.plan, "sources", broken)
    with pytest.raises(UserError, match="cannot be read") as error:
        predict(world.recipe, world.plan, rows_of(world.plan, "test"), CPU, 4)
    assert error.value.where["file"] == "/none.png"


def test_a_collapsed_model_scores_zero_and_says_so():
    y = np.random.default_rng(0).normal(size=(12, 4))
    x = y + 0.1
    x[:, 1:3] = 0.25
    got = metrics(x, y, EvalConfig(samplewise=True))
    assert got["spearman"] == got["pearson"] == pytest.approx(0.5) and got["n_undefined"] == 2
    expected = np.mean([stats.spearmanr(x[i], y[i]).statistic for i in range(12)])
    assert got["samplewise_spearman"] == pytest.approx(expected) and got["samplewise_pearson_undefined"] == 0


def test_training_is_validated_on_the_validation_rows(world):
    parts = assemble(world.config, world.plan, 1)
    validate = validator(world.plan, world.config.eval, CPU)
    rows = rows_of(world.plan, "val")
    state = SimpleNamespace(recipe=parts.recipe)
    got = validate(state)
    expected = metrics(predict(parts.recipe, world.plan, rows, CPU, 3), targets(world.plan)[rows], world.config.eval)
    assert got["spearman"] == expected["spearman"] and got["mse"] == pytest.approx(expected["mse"])
    assert parts.recipe.net.training


def test_tables_hold_every_row_and_every_gene(world, tmp_path):
    import pyarrow.csv
    import pyarrow.parquet

    rows = rows_of(world.plan, "train")
    measured = targets(world.plan)[rows]
    predicted = measured + np.random.default_rng(0).normal(size=measured.shape)
    predicted[:, 2] = 1.0
    made_of = Evaluation.of(world.plan, rows, predicted)
    config = replace(EvalConfig(), resamples=50)
    write_parquet(str(tmp_path / "p.parquet"), made_of.predictions())
    write_csv(str(tmp_path / "g.csv"), made_of.per_gene(made_of.both_intervals(config, 0)))
    table = pyarrow.parquet.read_table(tmp_path / "p.parquet")
    assert table["path"].to_pylist() == [world.plan.sources["name"][int(r)].as_py() for r in rows]
    assert np.array_equal(table["predicted_y1"].to_numpy(), predicted[:, 1])
    genes = pyarrow.csv.read_csv(tmp_path / "g.csv").to_pylist()
    assert [g["gene"] for g in genes] == ["y0", "y1", "y2"] and [g["undefined"] for g in genes] == [False, False, True]
    for k, gene in enumerate(genes[:2]):
        assert gene["pearson"] == pytest.approx(stats.pearsonr(predicted[:, k], measured[:, k]).statistic)
        assert gene["spearman_low"] <= gene["spearman"] <= gene["spearman_high"]
    one = replace(made_of, groups=np.full(len(rows), "p0"))
    assert (
        one.intervals("pearson", config, 0) is None
        and one.per_gene(one.both_intervals(config, 0))["pearson_low"].null_count == 3
    )


def _predicted_by_ranks(device, folder):
    from pathray.data.plan import Plan

    plan = Plan.open(folder)
    recipe = assemble(resolve(run_config(batch_size=2, grad_accum_steps=2, images=8), 1, plan.rows), plan, 1).recipe
    rows = np.concatenate([rows_of(plan, part) for part in ("val", "test")])
    return [predict(recipe, plan, rows[:count], device, 2) for count in (1, 2, 3, 5, rows.size)]


@pytest.mark.parametrize("ranks", [2, 3])
def test_real_workers_predict_every_row_once_and_all_know_all(tmp_path, ranks):
    *_, plan = made(tmp_path)
    found = run_ranks(ranks, _predicted_by_ranks, tmp_path / "ranks", plan.origin)
    alone = _predicted_by_ranks(CPU, plan.origin)
    for rank in found:
        for several, one in zip(rank, alone, strict=True):
            assert several.shape == one.shape and several == pytest.approx(one, abs=1e-5)
    assert all(np.array_equal(a, b) for a, b in zip(found[0], found[1], strict=True))
