"""Tokens: the context never sees a target, counts are fixed, and what is dropped is dropped evenly."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ijepath.config import MaskConfig
from ijepath.footprints import (
    TooFewTokens,
    sample_footprints,
    teacher_cells,
    to_predictor_grid,
    token_counts,
    token_spans,
)
from ijepath.geometry import BoxRules, Geometry, NoBoxes, draw_boxes, profile_geometry
from ijepath.profile import Profile
from pathray.data.order import rng
from pathray.errors import UserError

DEFAULT = profile_geometry(Profile())


def sample(geometry, mask, aligned, position, seed=0):
    counts = token_counts(geometry, mask, aligned)
    generator = rng(seed, "boxes", position)
    for _ in range(20):
        boxes, _ = draw_boxes(generator, geometry, BoxRules(aligned=aligned))
        try:
            return boxes, sample_footprints(generator, boxes, geometry, mask, counts), counts
        except TooFewTokens:
            continue
    raise TooFewTokens(0, counts.keep)


def touched(box, geometry):
    """R by brute force: every context token that shares a pixel with the box."""
    tokens = set()
    for row in range(geometry.grid):
        for column in range(geometry.grid):
            x, y, p = column * geometry.patch, row * geometry.patch, geometry.patch
            if x < box[2] and x + p > box[0] and y < box[3] and y + p > box[1]:
                tokens.add(row * geometry.grid + column)
    return tokens


@st.composite
def geometries(draw):
    patch = draw(st.sampled_from([4, 8, 16]))
    grid = draw(st.integers(4, 20))
    extent = [draw(st.integers(1, max(1, grid * patch // 2))) for _ in range(2)]
    edge = [draw(st.integers(0, (grid * patch - e) // 4)) for e in extent]
    targets = draw(st.integers(1, 4))
    crop = (patch * 2, patch * 3)
    return Geometry(grid * patch, patch, targets, tuple(extent), crop, tuple(edge), 1.0, 0.5)


@settings(max_examples=150, deadline=None)
@given(
    geometries(), st.booleans(), st.integers(0, 10**9), st.integers(0, 2), st.sampled_from(["all", "block", "random"])
)
def test_context_never_sees_a_target_token(geometry, aligned, position, guard, kind):
    mask = MaskConfig(min_keep=2, guard_tokens=guard, context=kind, context_scale=1.0 if kind == "all" else 0.7)
    try:
        boxes, tokens, counts = sample(geometry, mask, aligned, position)
    except (NoBoxes, TooFewTokens, UserError):
        return  # skipped or refused, never leaked
    assert tokens.keep.shape == (counts.keep,) and len(set(tokens.keep.tolist())) == counts.keep
    for box, predict in zip(boxes, tokens.predict, strict=True):
        raw = touched(box, geometry)
        assert not raw & set(tokens.keep.tolist())
        assert set(predict.tolist()) <= raw and len(set(predict.tolist())) == counts.predict


@pytest.mark.parametrize(("aligned", "sizes"), [(True, {64}), (False, {64, 72, 81})])
def test_raw_footprints_have_64_72_or_81_tokens(aligned, sizes):
    seen = set()
    for position in range(400):
        boxes, tokens, counts = sample(DEFAULT, MaskConfig(), aligned, position)
        spans = tokens.spans
        seen |= set(((spans[:, 2] - spans[:, 0]) * (spans[:, 3] - spans[:, 1])).tolist())
        assert np.array_equal(spans, token_spans(boxes, 16))
    assert seen == sizes if aligned else ({81} <= seen <= sizes)


def test_counts_follow_from_the_geometry_alone():
    assert token_counts(DEFAULT, MaskConfig(), False).keep == 1024 - 4 * 81
    assert token_counts(DEFAULT, MaskConfig(), True).keep == 1024 - 4 * 64
    assert token_counts(DEFAULT, MaskConfig(), False).predict == 64
    assert token_counts(DEFAULT, MaskConfig(guard_tokens=1), True).keep == 1024 - 4 * 100
    assert token_counts(DEFAULT, MaskConfig(context="random", context_scale=0.5), True).keep == 384
    assert token_counts(DEFAULT, MaskConfig(context="block", context_scale=0.64), True).keep == 26**2 - 256


def test_a_unit_has_the_same_tokens_whatever_comes_before_it():
    alone = [sample(DEFAULT, MaskConfig(), False, p)[1] for p in (5,)]
    among = [sample(DEFAULT, MaskConfig(), False, p)[1] for p in range(10)]
    assert np.array_equal(alone[0].keep, among[5].keep) and np.array_equal(alone[0].predict, among[5].predict)


def test_few_tokens_lead_to_a_refusal_and_never_to_a_leak():
    geometry = profile_geometry(Profile(context_fov_um=128, target_fov_um=64, targets_per_context=3))
    mask = MaskConfig(min_keep=10)  # 64 tokens, three targets of 16 to 25
    counts = token_counts(geometry, mask, False)
    assert counts.keep == 10
    refused = 0
    for position in range(200):
        generator = rng(0, "boxes", position)
        try:
            boxes, _ = draw_boxes(generator, geometry, BoxRules())
            tokens = sample_footprints(generator, boxes, geometry, mask, counts)
        except (TooFewTokens, NoBoxes):
            refused += 1
            continue
        assert not set(tokens.keep.tolist()) & set().union(*(touched(b, geometry) for b in boxes))
    assert 0 < refused < 200


def test_visibility_does_not_depend_on_the_row_or_column():
    """A raster-first cut left the bottom rows visible .36 of the time against .95 at the top."""
    mask = MaskConfig(context_keep_tokens=300)
    kept, open_ = np.zeros(1024), np.zeros(1024)
    for position in range(400):
        boxes, tokens, _ = sample(DEFAULT, mask, False, position)
        kept[tokens.keep] += 1
        free = np.ones(1024, bool)
        free[list(set().union(*(touched(b, DEFAULT) for b in boxes)))] = False
        open_ += free
    share = (kept / open_).reshape(32, 32)
    assert np.abs(share.mean(axis=1) / share.mean() - 1).max() < 0.05
    assert np.abs(share.mean(axis=0) / share.mean() - 1).max() < 0.05


def test_predictor_tokens_are_cut_evenly_over_the_footprint():
    hits = np.zeros((9, 9))
    samples = 0
    for position in range(1500):
        _, tokens, _ = sample(DEFAULT, MaskConfig(), False, position)
        for (c0, r0, c1, r1), predict in zip(tokens.spans, tokens.predict, strict=True):
            if (c1 - c0, r1 - r0) == (9, 9):
                hits[predict // 32 - r0, predict % 32 - c0] += 1
                samples += 1
    share = hits / samples
    assert share.mean() == pytest.approx(64 / 81, abs=1e-9)
    assert np.abs(share - 64 / 81).max() < 0.05


def test_a_guard_band_is_hidden_too():
    geometry = profile_geometry(Profile(targets_per_context=1))
    _, tokens, _ = sample(geometry, MaskConfig(guard_tokens=2), True, 0)
    ((c0, r0, c1, r1),) = tokens.spans.tolist()
    band = {r * 32 + c for r in range(r0 - 2, r1 + 2) for c in range(c0 - 2, c1 + 2) if 0 <= r < 32 and 0 <= c < 32}
    assert not band & set(tokens.keep.tolist())


def test_a_block_context_stays_inside_one_square():
    mask = MaskConfig(context="block", context_scale=0.5)
    for position in range(50):
        _, tokens, _ = sample(DEFAULT, mask, False, position)
        rows, columns = np.divmod(tokens.keep, 32)
        assert np.ptp(rows) < 23 and np.ptp(columns) < 23


def test_outside_targets_get_predictor_tokens_beyond_the_context_and_hide_none_of_it():
    geometry = profile_geometry(Profile(), outside=1, ring_um=32)
    boxes, tokens, counts = sample(geometry, MaskConfig(outside_targets=1), False, 3)
    assert counts.keep == 1024 - 3 * 81
    m, side = geometry.margin, geometry.predictor_grid
    rows, columns = tokens.predict[3] // side - m, tokens.predict[3] % side - m
    assert ((rows < 0) | (rows >= 32) | (columns < 0) | (columns >= 32)).all()
    rows, columns = tokens.predict[0] // side - m, tokens.predict[0] % side - m
    assert set((rows * 32 + columns).tolist()) <= touched(boxes[0], geometry)
    mapped = to_predictor_grid(tokens.keep, geometry)
    assert np.array_equal((mapped // side - m) * 32 + mapped % side - m, tokens.keep)


@pytest.mark.parametrize("aligned", [False, True])
def test_teacher_cells_name_the_context_token_under_their_centre(aligned):
    geometry = profile_geometry(Profile(), outside=1, ring_um=32)
    boxes, tokens, _ = sample(geometry, MaskConfig(outside_targets=1), aligned, 1)
    cells = teacher_cells(boxes, tokens.predict, geometry)
    assert cells.shape == (4, 256)
    for box, predict, place in zip(boxes, tokens.predict, cells, strict=True):
        for i, at in enumerate(place):
            row = int((box[1] + (i // 16 + 0.5) * 8) // 16) + geometry.margin
            column = int((box[0] + (i % 16 + 0.5) * 8) // 16) + geometry.margin
            token = row * geometry.predictor_grid + column
            assert (predict[at] == token) if at >= 0 else (token not in predict)
    assert not aligned or (np.bincount(cells[0], minlength=64) == 4).all()


def test_more_tokens_than_there_are_is_a_user_error():
    with pytest.raises(UserError, match="predict_tokens"):
        token_counts(DEFAULT, MaskConfig(predict_tokens=65), True)
    with pytest.raises(UserError, match="context_keep_tokens"):
        token_counts(DEFAULT, MaskConfig(context_keep_tokens=1000), True)
    tiny = profile_geometry(Profile(context_fov_um=64, target_fov_um=64, targets_per_context=1))
    with pytest.raises(UserError, match="min_keep"):
        token_counts(tiny, MaskConfig(), True)
