"""Objective and leaderboard: what is best, and how it reads."""

import csv
import io
import math

import pytest

from pathray.errors import UserError
from pathray.search.leaderboard import (
    FAILED,
    FINISHED,
    STOPPED,
    UNFINISHED,
    Entry,
    best_of,
    csv_text,
    entry_of,
    markdown,
)
from pathray.search.objective import Objective

LOSS, RI = Objective(), Objective("pathorob/camelyon/ri", "max")


@pytest.mark.parametrize("metric", ["pathorob/camelyon/ri", "pathorob/x/apd_avg", "pathorob/x/clustering_score"])
def test_a_direction_that_keeps_the_worst_is_refused(metric):
    with pytest.raises(UserError, match="larger is better.*objective.mode"):
        Objective(metric, "min")
    with pytest.raises(UserError, match="lower is better.*objective.mode"):
        Objective("loss", "max")
    assert Objective(metric, "max").source == "robustness.jsonl" and LOSS.source == "metrics.jsonl"


def test_nan_is_never_the_best_and_the_earliest_of_equal_ones_is():
    rows = [
        {"images_seen": 30, "loss": 0.25}, {"images_seen": 10, "loss": math.nan}, {"images_seen": 20, "loss": 0.25},
        {"images_seen": 40, "lr": 1.0}, {"images_seen": 50, "loss": None},
    ]  # fmt: skip
    history = LOSS.history(rows)
    assert [images for images, _ in history] == [10, 20, 30]
    assert LOSS.best(history) == (20, 0.25)
    assert RI.best([(1, 0.2), (2, 0.7), (3, math.inf)]) == (2, 0.7)
    assert LOSS.best([(1, math.nan)]) is None


def test_a_trial_of_several_runs_is_judged_at_its_best_with_the_values_it_had_there():
    runs = [({"lr": 1}, [(4, 0.9), (8, 0.5)], 8), ({"lr": 2}, [(12, 0.7), (16, 0.6)], 16)]
    entry = entry_of("t", FINISHED, runs, LOSS)
    assert (entry.best, entry.last, entry.values, entry.images_seen) == ((8, 0.5), (16, 0.6), {"lr": 1}, 16)
    none = entry_of("t", UNFINISHED, [({"lr": 3}, [], 0)], LOSS)
    assert (none.best, none.last, none.values) == (None, None, {"lr": 3})


ENTRIES = [
    Entry("broke", FAILED, {"lr": 1e-1, "name": "a|b"}, (4, 0.1), (4, 0.1), 4, "NaN\nin the loss"),
    Entry("none", UNFINISHED, {"lr": 1e-3, "name": "c"}),
    Entry("good", FINISHED, {"lr": 1e-4, "name": "d"}, (12000, 0.2), (16000, 0.3), 16000),
    Entry("halved", STOPPED, {"lr": 1e-5, "name": "e"}, (4000, 0.4), (4000, 0.4), 4000),
]


def test_the_failed_come_last_and_are_not_recommended():
    rows = list(csv.DictReader(io.StringIO(csv_text(ENTRIES, LOSS, ["lr", "name"]))))
    assert [row["trial"] for row in rows] == ["good", "halved", "none", "broke"]
    assert [row["rank"] for row in rows] == ["1", "2", "3", "4"]
    assert (rows[0]["loss best"], rows[0]["at images"], rows[0]["lr"]) == ("0.2", "12000", "0.0001")
    assert rows[3]["error"] == "NaN in the loss" and rows[2]["loss best"] == ""
    assert best_of(ENTRIES, LOSS) is ENTRIES[2]
    assert best_of(ENTRIES[:2], LOSS) is None
    more = Objective("accuracy", "max")
    assert best_of(ENTRIES, more) is ENTRIES[3]


def test_the_table_reads_as_markdown():
    text = markdown(ENTRIES, LOSS, ["lr", "name"], "Sweep of x")
    lines = text.splitlines()
    assert lines[0] == "# Sweep of x"
    assert lines[2] == "`loss`, lower is better. Trials: 1 finished, 1 stopped, 1 failed, 1 unfinished."
    table = [line for line in lines if line.startswith("|")]
    assert len({line.replace("\\|", "").count("|") for line in table}) == 1, "every row has as many cells"
    assert table[2] == "| 1 | good | finished | 0.2 | 12,000 | 0.3 | 16,000 | 0.0001 | d |"
    assert "- `broke`: NaN in the loss" in lines
