"""Plan and reader: training rows only, each once a pass, whatever the order of the table; what cannot be read."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from pathray.data.order import uniform_order
from pathray.data.share import Lookup, rank_rows
from pathray.data.splits import Split
from pathray.data.stream import DecodeSettings, stream_batches
from pathray.errors import UnreadableUnit
from regression.data import ImageReader
from regression.evaluate import Evaluation
from regression.plan import build_plan, identity, normaliser, rows_of, targets
from regression.tables.places import Places
from regression.tables.table import Table
from tests.builders.expression import made


def test_units_are_the_training_rows_and_their_statistics_alone(tmp_path):
    table, split, plan = made(tmp_path)
    units = plan.column("source")
    assert set(units.tolist()) == set(rows_of(plan, "train").tolist()) and plan.rows == split.rows("train").size
    own = table.targets[split.rows("train")]
    assert normaliser(plan).mean == pytest.approx(own.mean(axis=0)) and len(rows_of(plan, "val")) > 0
    assert np.array_equal(targets(plan), table.targets[np.argsort(table.names)])


def test_the_plan_is_the_same_for_a_table_in_another_order_or_place(tmp_path):
    table, split, plan = made(tmp_path)
    turned = Table("/else/table.csv", table.names[::-1], table.groups[::-1], table.targets[::-1], table.genes)
    again = build_plan(turned, Split(split.of[::-1], split.meta), str(tmp_path / "again"))
    assert identity(again) == identity(plan) and np.array_equal(again.column("source"), plan.column("source"))
    assert identity(build_plan(table, split, str(tmp_path / "raw"), normalize_target=False)) != identity(plan)


def test_an_epoch_reads_every_training_image_once_with_its_own_target(tmp_path):
    table, split, plan = made(tmp_path)
    order = uniform_order(plan.rows, 0)
    reader, lookup = ImageReader.of(plan, 0, 32), Lookup(plan, order)
    rows = rank_rows(lookup, 0, 2 * plan.rows, plan.rows, 0, 1, plan.rows)
    for batch in stream_batches(rows, reader, lookup, DecodeSettings(threads=2)):
        assert sorted(batch["source"]) == sorted(rows_of(plan, "train")) and batch["corrupt"] == 0
        for image, target, source in zip(batch["image"], batch["target"], batch["source"], strict=True):
            with Image.open(plan.sources["path"][int(source)].as_py()) as file:
                assert np.array_equal(image, np.asarray(file))
            assert normaliser(plan).invert(target) == pytest.approx(targets(plan)[source], abs=1e-5)


def test_draws_come_from_the_position_and_an_unreadable_image_is_replaced(tmp_path):
    _, _, plan = made(tmp_path)
    reader, lookup = ImageReader.of(plan, 0, 16), Lookup(plan, uniform_order(plan.rows, 0))
    unit = {"source": plan.column("source")[0]}
    a, b, c = (reader.read(unit, *at)["draws"] for at in ((5, 0), (5, 0), (6, 0)))
    assert np.array_equal(a, b) and not np.array_equal(a, c) and reader.read(unit, 5, 0)["image"].shape == (16, 16, 3)
    bad = plan.sources["path"][int(unit["source"])].as_py()
    Image.fromarray(np.zeros((8, 9, 3), np.uint8)).save(bad)
    with pytest.raises(UnreadableUnit, match="9 x 8 pixels"):
        reader.read(unit, 5, 0)
    with open(bad, "wb") as file:
        file.write(b"no image")
    (batch,) = stream_batches(rank_rows(lookup, 0, plan.rows, plan.rows, 0, 1, plan.rows), reader, lookup)
    assert batch["corrupt"] == 1 and {f.reason for f in batch["faults"]} == {"decode"}
    assert int(unit["source"]) not in batch["source"]


def test_places_stay_with_their_images(tmp_path):
    table, split, _ = made(tmp_path)
    number = np.array([float(name.removesuffix(".png")) for name in table.names])
    text, none = np.full(len(table), "s"), np.full(len(table), np.nan)
    turned = np.random.default_rng(0).permutation(len(table))
    placed = Table(
        table.file, table.names[turned], table.groups[turned], table.targets[turned], table.genes,
        Places(number, -number, text, text, none, none).take(turned), "CP10k",
    )  # fmt: skip
    plan = build_plan(placed, Split(split.of[turned], split.meta), str(tmp_path / "placed"))
    rows = rows_of(plan, "test")[::-1]
    judged = Evaluation.of(plan, rows, targets(plan)[rows])
    assert judged.places.x.tolist() == [float(name.removesuffix(".png")) for name in judged.names]
    assert judged.places.y.tolist() == (-judged.places.x).tolist() and judged.unit == "CP10k"
