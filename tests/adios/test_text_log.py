"""Text logs become rows: iterations and newest values, and of what was trained twice the second time."""

from __future__ import annotations

import math

import pytest

from adios.text_log import read_logs, rows_of_text
from pathray.errors import UserError

LINE = "[{step:6d}/300000]  eta: 2 days, 3:04:05  student_loss: {loss:.6f} (9.000000)  mask_loss: -1.5e+01 (-14.2)  \
temp: nan (nan)  time: 0.512000  data: 0.000200  max mem: 23456"


def log(path, *steps: int, loss: float = 8.5) -> str:
    lines = ["| distributed init (rank 0)", *(LINE.format(step=s, loss=loss) for s in steps), "Saved to x: 3"]
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def test_a_line_gives_its_iteration_and_newest_values(tmp_path):
    (row,) = read_logs([log(tmp_path / "a.out", 10610)])
    assert math.isnan(row.pop("temp"))
    assert row == {"iteration": 10610, "student_loss": 8.5, "mask_loss": -15.0}
    assert rows_of_text("Iteration 20: student_loss: 8.5 (8.6)  contrastive: 2.25") == [
        {"iteration": 20, "student_loss": 8.5, "contrastive": 2.25}
    ]
    assert rows_of_text("epoch [3/9] begins\nlr: 0.1 without a place") == []


def test_what_was_trained_again_counts_the_second_time(tmp_path):
    paths = [log(tmp_path / "a.out", 0, 10, 20, 30), log(tmp_path / "b.out", 20, 40, loss=7.0)]
    rows = read_logs(paths)
    assert [(r["iteration"], r["student_loss"]) for r in rows] == [(0, 8.5), (10, 8.5), (20, 7.0), (40, 7.0)]
    again = log(tmp_path / "c.out", 0, 10, 20, 5, 15)
    assert [r["iteration"] for r in read_logs([again])] == [0, 5, 15], "also within one file"


def test_lines_of_the_same_iteration_are_one_row(tmp_path):
    first, second = tmp_path / "a.out", tmp_path / "b.out"
    first.write_text("Iteration 500: student_loss: 8.5\nIteration 500: mask_loss: -7.5\nIteration 510: lr: 0.1\n")
    assert read_logs([str(first)])[0] == {"iteration": 500, "student_loss": 8.5, "mask_loss": -7.5}
    second.write_text("Iteration 500: mask_loss: -6.5\n")
    again = [{"iteration": 500, "student_loss": 8.5, "mask_loss": -6.5}]
    assert read_logs([str(first), str(second)]) == again, "what came after it goes, and the later figure counts"


def test_a_log_without_figures_is_named(tmp_path):
    with pytest.raises(UserError, match=r"no figures.*empty\.out"):
        read_logs([log(tmp_path / "empty.out")])
