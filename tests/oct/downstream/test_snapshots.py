"""The encoders of a run, and their leaderboard."""

import csv

import pytest

from oct.downstream.snapshots import Snapshot, Standing, draw_curve, find_snapshots, ranked, write_leaderboard
from pathray.errors import UserError
from pathray.stats.bootstrap import Interval
from pathray.store.storage import Storage
from tests.builders.oct.labelled import write_oct_encoder, write_oct_run


def test_snapshots_come_in_the_order_of_the_volumes_and_equal_weights_once(tmp_path):
    write_oct_run(tmp_path / "run", (64, 32, 96))
    found = find_snapshots(str(tmp_path / "run"))
    assert [(s.name, s.images_seen) for s in found] == [("32 volumes", 32), ("64 volumes", 64), ("final", 96)]


def test_a_run_that_has_not_ended_has_its_snapshots_and_one_without_any_is_refused(tmp_path):
    write_oct_run(tmp_path / "run", (16,), final=False)
    assert [s.name for s in find_snapshots(str(tmp_path / "run"))] == ["16 volumes"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no encoders.*logging.save_every"):
        find_snapshots(str(tmp_path / "empty"))
    write_oct_encoder(tmp_path / "other" / "encoder", normalise="slice")
    with pytest.raises(UserError, match="not an encoder of OCT volumes"):
        find_snapshots(str(tmp_path / "other"))


def test_the_best_comes_first_and_of_equal_ones_the_earlier(tmp_path):
    def of(name, seen, value):
        return Standing(Snapshot(name, name, seen), {"auc": Interval(value, 0.1, 0.9, 0.95, 5)}, {})

    standings = [of("a", 10, 0.6), of("b", 20, 0.8), of("c", 30, 0.8)]
    assert [one.snapshot.name for one in ranked(standings, "auc")] == ["b", "c", "a"]
    path = write_leaderboard(Storage.of(str(tmp_path)), standings, "auc")
    with open(path) as file:
        rows = list(csv.DictReader(file))
    assert [(row["rank"], row["snapshot"], row["auc"], row["auc_low"]) for row in rows] == [
        ("1", "b", "0.8000", "0.1000"),
        ("2", "c", "0.8000", "0.1000"),
        ("3", "a", "0.6000", "0.1000"),
    ]
    assert draw_curve(standings, standings[0].scores, "auc", 0.0).startswith(b"\x89PNG")
