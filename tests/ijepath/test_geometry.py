"""Target boxes: legal, uniform, and a function of (seed, position) alone."""

import numpy as np
import pytest

from ijepath.config import MaskConfig, OptimizationConfig, RunConfig, ScalesConfig
from ijepath.geometry import BoxRules, Geometry, NoBoxes, draw_boxes, overlap_areas, profile_geometry, starts
from ijepath.profile import Profile
from ijepath.scales import available_factors, kind_of_step, kinds
from pathray.data.order import rng
from pathray.errors import UserError

DEFAULT = profile_geometry(Profile())


def many(geometry: Geometry, rules: BoxRules, n: int, purpose: str = "boxes") -> np.ndarray:
    return np.stack([draw_boxes(rng(0, purpose, i), geometry, rules)[0] for i in range(n)])


def test_default_profile_has_the_sizes_of_the_specification():
    assert (DEFAULT.context_px, DEFAULT.grid, DEFAULT.footprint, DEFAULT.crop) == (512, 32, (128, 128), (256, 256))
    assert DEFAULT.edge == (0, 0) and DEFAULT.teacher_grid == (16, 16)


def test_margin_below_half_the_target_has_no_effect_and_above_it_does():
    assert profile_geometry(Profile(target_margin_um=64)).edge == (0, 0)
    assert profile_geometry(Profile(target_margin_um=80)).edge == (16, 16)


def test_corner_positions_are_inclusive_at_both_ends():
    positions = starts(512, 128, 0, 16, aligned=False)
    assert (positions[0], positions[-1], positions.size) == (0, 384, 385)
    positions = starts(512, 128, 16, 16, aligned=False)
    assert (positions[0], positions[-1]) == (16, 368)


def test_aligned_positions_include_the_last_row_and_column():
    assert starts(512, 128, 0, 16, aligned=True).tolist() == list(range(0, 385, 16))
    assert starts(512, 128, 10, 16, aligned=True).tolist() == list(range(16, 369, 16))


def test_a_target_without_room_is_a_user_error():
    with pytest.raises(UserError, match="no room"):
        starts(128, 120, 5, 16, aligned=False)


@pytest.mark.parametrize("aligned", [False, True])
def test_first_box_is_uniform_over_all_legal_positions(aligned):
    geometry = profile_geometry(Profile(context_fov_um=160, target_fov_um=64, targets_per_context=1))
    boxes = many(geometry, BoxRules(aligned=aligned), 4000)[:, 0]
    legal = starts(160, 64, 0, 16, aligned)
    for axis in (0, 1):
        counts = np.array([(boxes[:, axis] == p).sum() for p in legal])
        assert counts.sum() == 4000
        expected = 4000 / legal.size
        chi2 = ((counts - expected) ** 2 / expected).sum()
        assert chi2 < legal.size - 1 + 5 * np.sqrt(2 * (legal.size - 1))


@pytest.mark.parametrize("aligned", [False, True])
def test_pairwise_overlap_stays_within_a_quarter_of_a_target(aligned):
    for boxes in many(DEFAULT, BoxRules(aligned=aligned), 300):
        area = overlap_areas(boxes, boxes)
        assert np.array_equal(np.diag(area), np.full(4, 128 * 128))
        assert area[~np.eye(4, dtype=bool)].max() <= 0.25 * 128 * 128


def test_overlap_areas_equal_pixel_counting():
    generator = np.random.default_rng(0)
    boxes = np.stack([b for b in generator.integers(0, 20, size=(8, 4)) if b[0] < b[2] and b[1] < b[3]])
    canvas = np.zeros((len(boxes), 20, 20), bool)
    for image, (x0, y0, x1, y1) in zip(canvas, boxes, strict=True):
        image[y0:y1, x0:x1] = True
    assert np.array_equal(overlap_areas(boxes, boxes), (canvas[:, None] & canvas[None]).sum((2, 3)))


def test_boxes_depend_on_seed_position_and_attempt_and_on_nothing_else():
    def draw(seed, position, attempt):
        return draw_boxes(rng(seed, "boxes", position, attempt), DEFAULT, BoxRules())[0].tobytes()

    assert draw(0, 7, 0) == draw(0, 7, 0)
    different = {draw(0, p, a) for p in range(200) for a in range(2)} | {draw(1, 7, 0)}
    assert len(different) == 401  # a second pass has other positions, so other boxes; so has any other rank


def test_every_box_has_the_tissue_that_is_asked_of_it():
    def tissue(boxes):  # tissue right of x = 200
        return np.clip((boxes[:, 2] - 200) / 128, 0, 1).astype(float)

    for i in range(100):
        boxes, threshold = draw_boxes(rng(0, "boxes", i), DEFAULT, BoxRules(min_tissue=0.5), tissue)
        assert threshold == 0.5 and tissue(boxes).min() >= 0.5


def test_too_little_tissue_is_refused_or_the_threshold_lowered_to_its_floor():
    def poor(boxes):
        return np.full(len(boxes), 0.12)

    with pytest.raises(NoBoxes) as error:
        draw_boxes(rng(0, "boxes", 0), DEFAULT, BoxRules(), poor)
    assert error.value.reason == "tissue"
    rules = BoxRules(policy="lower_threshold")
    assert [round(t, 9) for t in rules.thresholds()] == [0.25, 0.2, 0.15, 0.1]
    assert draw_boxes(rng(0, "boxes", 0), DEFAULT, rules, poor)[1] == pytest.approx(0.1)
    with pytest.raises(NoBoxes):
        draw_boxes(rng(0, "boxes", 0), DEFAULT, rules, lambda boxes: np.full(len(boxes), 0.09))


def test_targets_that_cannot_stand_apart_are_reported_as_overlap():
    crowded = profile_geometry(Profile(context_fov_um=144, targets_per_context=3))
    with pytest.raises(NoBoxes) as error:
        draw_boxes(rng(0, "boxes", 0), crowded, BoxRules())
    assert error.value.reason == "overlap"


@pytest.mark.parametrize("aligned", [False, True])
def test_outside_targets_lie_in_the_ring_and_inside_the_predictors_grid(aligned):
    geometry = profile_geometry(Profile(), outside=2, ring_um=40)
    assert geometry.margin == 11 and geometry.predictor_grid == 54  # ceil((40 + 128) / 16)
    boxes = many(geometry, BoxRules(aligned=aligned), 300)
    ring = boxes[:, 2:].reshape(-1, 4)
    beyond = np.stack([-ring[:, 2], -ring[:, 3], ring[:, 0] - 512, ring[:, 1] - 512])  # left, above, right, below
    gap = beyond.max(axis=0)
    assert gap.min() >= 0 and gap.max() <= 40
    assert ring.min() >= -11 * 16 and ring.max() <= 512 + 11 * 16
    assert all((beyond[side] >= 0).sum() > 50 for side in range(4))
    assert not aligned or (ring % 16 == 0).all()


def run_config(**sections) -> RunConfig:
    return RunConfig(optimization=OptimizationConfig(total_images_budget=1000), **sections)


def test_without_options_there_is_one_kind_and_it_is_the_profile():
    (only,) = kinds(run_config())
    assert only.geometry == DEFAULT and only.share == 1


def test_same_and_reverse_resolution_keep_the_tokens_and_change_the_crop():
    made = kinds(run_config(scales=ScalesConfig(same_resolution_ratio=0.25, reverse_ratio=0.25)))
    by_name = {k.name: k for k in made}
    same, reverse = by_name["same_128x128"].geometry, by_name["reverse_128x128"].geometry
    assert (same.context_mpp, same.target_mpp, same.crop) == (0.5, 0.5, (128, 128))
    assert (reverse.context_mpp, reverse.target_mpp, reverse.crop) == (0.5, 1.0, (64, 64))
    assert {k.geometry.footprint for k in made} == {(128, 128)} and sum(k.share for k in made) == pytest.approx(1)


def test_kinds_are_mixed_by_their_ratio_and_fixed_per_step():
    made = kinds(run_config(scales=ScalesConfig(same_resolution_ratio=0.25)))
    drawn = [kind_of_step(made, 3, step).name for step in range(2000)]
    assert drawn == [kind_of_step(made, 3, step).name for step in range(2000)]
    assert np.mean([name.startswith("same") for name in drawn]) == pytest.approx(0.25, abs=0.03)


def test_variable_target_shapes_are_whole_patches_within_their_ranges():
    options = ScalesConfig(target_shapes=6, target_scale=[0.5, 1.0], target_aspect=[0.5, 2.0])
    made = kinds(run_config(scales=options, mask=MaskConfig()))
    assert len(made) == 6 and len({k.geometry.footprint for k in made}) > 2
    for kind in made:
        h, w = kind.geometry.footprint
        assert h % 16 == 0 and w % 16 == 0 and kind.geometry.crop == (2 * h, 2 * w)
        assert 0.4 <= h * w / 128**2 <= 1.15 and 0.4 <= h / w <= 2.5


def test_a_factor_is_available_only_where_the_slide_is_fine_enough():
    assert available_factors([0.5, 1.0, 2.0], DEFAULT, 0.25, 0.05) == [0.5, 1.0, 2.0]
    assert available_factors([0.5, 1.0, 2.0], DEFAULT, 0.5, 0.05) == [1.0, 2.0]
    assert available_factors([1.0], DEFAULT, 0.52, 0.05) == [1.0]
    assert available_factors([1.0], DEFAULT, 0.6, 0.05) == []
