"""The picture's geometry: where values lie on their axes, and that a picture comes out whatever the trials are."""

import io

import pytest
from PIL import Image

from pathray.search.leaderboard import FAILED, FINISHED, STOPPED, UNFINISHED, Entry
from pathray.search.objective import Objective
from pathray.search.parallel import axis_of, draw_parallel, objective_axis
from pathray.search.space import parse_space

SPACE = parse_space(
    {"lr": {"loguniform": [1e-5, 1e-3]}, "model.name": {"choice": ["s", "m", "l"]}, "decay": {"uniform": [0, 0.2]}}
)


def entry(trial: str, status: str, best: float | None, lr: float = 1e-4) -> Entry:
    point = None if best is None else (8, best)
    return Entry(trial, status, {"lr": lr, "model.name": "m", "decay": 0.1}, point, point, 8)


def test_logarithmic_ranges_choices_and_linear_ranges_have_their_own_axes():
    lr, name, decay = (axis_of(dimension) for dimension in SPACE.values())
    assert lr.place(1e-4) == pytest.approx(0.5) and lr.note == "log"
    assert [label for _, label in lr.ticks] == ["1e-05", "0.0001", "0.001"]
    assert [place for place, _ in lr.ticks] == pytest.approx([0, 0.5, 1])
    assert [name.place(v) for v in "sml"] == [0.0, 0.5, 1.0] and name.ticks[1] == (0.5, "m")
    assert decay.place(0.05) == pytest.approx(0.25) and all(0 <= place <= 1 for place, _ in decay.ticks)


def test_the_better_end_of_the_objective_is_above_whichever_it_is():
    entries = [entry("a", FINISHED, 0.2), entry("b", FINISHED, 0.6), entry("c", UNFINISHED, None)]
    less, more = objective_axis(entries, Objective()), objective_axis(entries, Objective("acc", "max"))
    assert (less.place(0.2), less.place(0.6)) == (1.0, 0.0)
    assert (more.place(0.2), more.place(0.6)) == (0.0, 1.0)


@pytest.mark.parametrize(
    "entries",
    [
        [],
        [entry("a", UNFINISHED, None)],
        [entry("a", FINISHED, 0.0), entry("b", STOPPED, 0.0)],
        [entry("a", FINISHED, 0.2), entry("b", STOPPED, 90.0, 1e-3), entry("c", FAILED, None), entry("d", FAILED, 1.0)],
    ],
    ids=["no trial", "no value yet", "equal values", "all kinds"],
)
def test_a_picture_comes_out_whatever_the_trials_are(entries):
    picture = Image.open(io.BytesIO(draw_parallel(entries, SPACE, Objective(), "Sweep")))
    assert picture.size == (890, 540)
    ink = sum(n for n, colour in picture.convert("RGB").getcolors(1 << 24) if colour != (255, 255, 255))
    assert 0.01 < ink / (890 * 540) < 0.3
