"""The solid of hidden tokens: exactly the faces that can be seen, far ones first, inside their rectangle."""

from __future__ import annotations

import numpy as np
import pytest

from oct.pictures.solid import FACES, Projection, draw_solid, solid_height, visible_faces
from pathray.draw.canvas import Canvas


def solid(*tokens, shape=(3, 3, 3)):
    hidden = np.zeros(shape, bool)
    for token in tokens:
        hidden[token] = True
    return hidden


def test_a_token_has_three_faces_and_a_neighbour_covers_one():
    assert len(list(visible_faces(solid((1, 1, 1))))) == 3
    assert len(list(visible_faces(solid((1, 1, 1), (1, 1, 2))))) == 5
    assert len(list(visible_faces(np.ones((2, 2, 2), bool)))) == 12
    assert list(visible_faces(np.zeros((2, 2, 2), bool))) == []


def test_the_faces_are_those_whose_neighbour_is_visible_or_outside():
    hidden = np.random.default_rng(0).random((4, 5, 6)) < 0.6
    expected = set()
    for z, y, x in zip(*np.nonzero(hidden), strict=True):
        for face, ((a, b, c), _, _) in enumerate(FACES):
            place = (z + a, y + b, x + c)
            is_in = all(0 <= p < n for p, n in zip(place, hidden.shape, strict=True))
            if not (is_in and hidden[place]):
                expected.add(((z, y, x), face))
    found = list(visible_faces(hidden))
    assert set(found) == expected and len(found) == len(expected)


def test_what_is_nearer_is_drawn_later():
    order = [token for token, _ in visible_faces(np.random.default_rng(1).random((4, 4, 4)) < 0.5)]
    key = [(-z, -y, x) for z, y, x in order]
    assert key == sorted(key)


@pytest.mark.parametrize("proportions", [(0.2, 0.32, 0.32), (0.4, 0.08, 0.27)])
def test_the_box_stays_in_its_rectangle(proportions):
    grid = (16, 24, 24)
    to_picture = Projection.of(grid, proportions, 10, 20, 300, 250)
    corners = [to_picture(z * 16, y * 24, x * 24) for z in (0, 1) for y in (0, 1) for x in (0, 1)]
    xs, ys = zip(*corners, strict=True)
    assert min(xs) == pytest.approx(10) and min(ys) == pytest.approx(20)
    assert max(xs) <= 310 + 1e-6 and max(ys) <= 270 + 1e-6
    assert max(xs) == pytest.approx(310) or max(ys) == pytest.approx(270)
    dz, dy, dx = to_picture.size
    assert dy / dx == pytest.approx(proportions[1] / proportions[2]) and dz / dx == pytest.approx(
        proportions[0] / proportions[2]
    )


def test_it_is_drawn_where_it_says():
    canvas = Canvas(300, 300, 1.0)
    draw_solid(canvas, np.ones((4, 4, 4), bool), (1.0, 1.0, 1.0), 20, 30, 250, 220, "#e8860c")
    picture = canvas.to_picture().astype(int)
    orange = (picture[..., 0] - picture[..., 2]) > 60
    rows, columns = np.nonzero(orange)
    assert rows.min() >= 29 and rows.max() <= 30 + solid_height((4, 4, 4), (1.0, 1.0, 1.0), 250, 220)
    assert columns.min() >= 20 and columns.max() <= 270 and orange.sum() > 5000
