from dataclasses import replace
from fractions import Fraction
from math import floor
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import ijepath
from ijepath.profile import Profile, profile_from_dict, size_level0, size_px
from pathray.errors import UserError
from pathray.wsi.regions import level_box

CONFIGS = Path(ijepath.__file__).parent / "configs" / "profile"


def test_the_default_geometry_is_the_one_of_the_specification():
    p = Profile()
    assert (p.context_px, p.target_px, p.target_footprint_px, p.target_edge_px) == (512, 256, 128, 0)
    assert (p.context_effective_mpp, p.target_effective_mpp) == (1.0, 0.5)
    assert p.name == "ctx1p0_tgt0p5_fov512um_k4"


def test_the_shipped_profile_holds_the_defaults_and_is_named_after_itself():
    path = CONFIGS / "ctx1p0_tgt0p5_fov512um_k4.yaml"
    values = yaml.safe_load(path.read_text())
    assert values["profile_id"] == path.stem == Profile().name
    assert profile_from_dict(values) == replace(Profile(), profile_id=path.stem)


@given(
    st.integers(1, 4000),
    st.sampled_from([Fraction(1, 4), Fraction(1, 2), Fraction(1), Fraction(2)]),
    st.sampled_from([8, 14, 16]),
)
def test_sizes_snap_to_the_nearest_patch_with_ties_down(fov, mpp, patch):
    exact = Fraction(fov) / mpp / patch
    below = floor(exact)
    nearest = below if exact - below <= Fraction(1, 2) else below + 1
    assert size_px(float(fov), float(mpp), patch) == patch * max(1, nearest)


def test_effective_spacing_keeps_the_field_of_view_when_the_side_is_snapped():
    p = Profile(context_fov_um=500.0)
    assert p.context_px == 496  # 31.25 patches
    assert p.context_px * p.context_effective_mpp == pytest.approx(500.0)


def test_a_margin_below_half_the_target_has_no_effect_and_one_above_moves_the_edge():
    assert Profile(target_margin_um=64.0).target_edge_px == 0
    assert Profile(target_margin_um=80.0).target_edge_px == 16


def test_level0_sizes_follow_the_slide_spacing():
    p = Profile()
    assert (p.context_size_level0(0.25), p.context_size_level0(0.499), p.stride_level0(0.5)) == (2048, 1026, 512)
    assert p.target_size_level0(0.5) == size_level0(256, 0.5, 0.5) == 256


@given(st.floats(0.1, 2.0), st.integers(16, 1024), st.sampled_from([0.25, 0.5, 1.0, 0.997]))
def test_level0_sizes_are_those_that_a_region_read_covers(mpp0, px, mpp):
    assert size_level0(px, mpp, mpp0) == level_box(0, 0, (px, px), mpp / mpp0, 1.0)[2]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("context_mpp", 0.0),
        ("target_mpp", float("nan")),
        ("context_fov_um", -1.0),
        ("anchor_stride_fraction", 0.0),
        ("min_tissue_fraction", 1.5),
        ("targets_per_context", 0),
        ("spacing_tolerance", -0.1),
        ("target_fov_um", 600.0),
    ],
)
def test_a_senseless_value_is_refused_by_name(key, value):
    with pytest.raises(UserError) as caught:
        replace(Profile(), **{key: value}).validate("profile.yaml")
    assert caught.value.where["key"] == key and caught.value.where["file"] == "profile.yaml"


def test_an_unknown_key_of_a_recorded_profile_is_refused():
    with pytest.raises(UserError, match="context_mp"):
        profile_from_dict({"context_mp": 1.0})


def test_only_what_moves_anchors_changes_the_catalog_hash():
    base = replace(Profile(), profile_id="p")
    same = [replace(base, **{k: 9}) for k in ("targets_per_context", "seed", "target_margin_um", "profile_id")]
    other = [replace(base, min_tissue_fraction=0.3), replace(base, context_fov_um=256.0)]
    assert {p.catalog_hash() for p in same} == {base.catalog_hash()}
    assert base.catalog_hash() not in {p.catalog_hash() for p in other}
