"""Nothing is enlarged more than twice beyond what a slide holds, unless a key allows it: in every use of slides."""

import importlib
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from adios.patches.cut import ImagesCut, SlideCut, cut, cut_if_needed
from ijepath.indexing.anchors import anchors_of
from ijepath.indexing.index import index_slide
from ijepath.indexing.manifest import ManifestRow
from ijepath.profile import Profile
from pathray.config.load import load_config
from pathray.device import Device
from pathray.errors import UserError
from pathray.features.encoder import EncoderSpec
from pathray.features.slides import SlideJob, SlideSettings, extract_slide
from pathray.wsi.spacing import enlargement, too_coarse
from pathray.wsi.tiling import TileSpec
from tests.builders.encoders import write_encoder
from tests.builders.slides import write_mask, write_slide


def test_enlargement_is_of_the_finest_level():
    assert enlargement((8.0, 2.0, 4.0), 0.5) == 4.0 and enlargement((0.25, 1.0), 0.5) == 0.5


@pytest.mark.parametrize(
    ("mpp0", "most", "allowed"), [(0.5, 2, True), (1.0, 2, True), (1.01, 2, False), (1.0, 1.5, False)]
)
def test_the_bound_itself_is_allowed(mpp0, most, allowed):
    said = too_coarse((mpp0, 4 * mpp0), 0.5, most)
    assert (said == "") == allowed
    if not allowed:
        assert f"{2 * mpp0:.1f} times" in said and f"max_enlargement={most:g}" in said


@pytest.fixture
def slide(tmp_path):
    write_mask(tmp_path / "mask.png", np.ones((70, 90), np.uint8))
    return str(write_slide(tmp_path / "slide.tif", mpp=4.0)), str(tmp_path / "mask.png")


def test_a_slide_that_is_too_coarse_gives_no_anchors_and_says_why(slide):
    path, mask = slide
    row = index_slide(ManifestRow(2, "a", path, mask_path=mask))
    fine = Profile(context_mpp=1.0, target_mpp=0.5, context_fov_um=256.0, target_fov_um=64.0, target_margin_um=4.0)
    [found] = anchors_of([row], fine)
    assert (found.status, found.reason, len(found)) == ("failed", "too_coarse", 0) and "8.0 times" in found.detail
    [found] = anchors_of([row], fine, max_enlargement=8.0)
    assert found.status == "ok" and len(found) > 0
    coarse = Profile(context_mpp=8.0, target_mpp=4.0, context_fov_um=1024.0, target_fov_um=256.0, target_margin_um=32.0)
    [found] = anchors_of([row], coarse)
    assert found.status == "ok" and len(found) > 0


def test_features_and_patches_of_a_slide_that_is_too_coarse_are_refused(slide, tmp_path):
    path, mask = slide
    encoder = EncoderSpec.of("a", write_encoder(tmp_path / "encoder"))
    settings, bag = SlideSettings(TileSpec(32, 1.0)), str(tmp_path / "a.h5")
    job = SlideJob("s", path, mask_path=mask, bags=(("a", bag),))
    with pytest.raises(UserError, match=r"4.0 times.*max_enlargement=2") as e:
        extract_slide(job, {"a": encoder}, {}, settings, Device.of("cpu"))
    assert path in str(e.value)

    archive = SlideCut("s", str(tmp_path / "zips/s.zip"), path, 4.0, mask)
    outcome = cut_if_needed(archive, TileSpec(32, 1.0))
    assert outcome.status == "failed" and "4.0 times" in outcome.error
    assert cut(replace(archive, max_enlargement=4.0), TileSpec(32, 1.0)).status == "ok"


def test_images_of_a_stated_spacing_follow_the_same_rule(tmp_path):
    Image.fromarray(np.full((200, 200, 3), 150, np.uint8)).save(tmp_path / "a.png")
    job = ImagesCut("in", str(tmp_path / "zips/in.zip"), (str(tmp_path / "a.png"),), mpp=2.0)
    assert "4.0 times" in cut_if_needed(job, TileSpec(64, 0.5)).error
    assert cut_if_needed(job, TileSpec(64, 1.0)).status == "ok"


def test_anchors_and_patches_that_are_enlarged_a_little_are_made_and_say_so(tmp_path):
    path, mask = str(write_slide(tmp_path / "slide.tif", mpp=0.8)), str(tmp_path / "mask.png")
    write_mask(tmp_path / "mask.png", np.ones((70, 90), np.uint8))
    row = index_slide(ManifestRow(2, "a", path, mask_path=mask))
    fine = Profile(context_mpp=1.0, target_mpp=0.5, context_fov_um=256.0, target_fov_um=64.0, target_margin_um=4.0)
    [found] = anchors_of([row], fine)
    assert (found.status, found.reason) == ("ok", "") and "1.6 times the targets'" in found.detail
    [found] = anchors_of([row], replace(fine, target_mpp=1.0))
    assert (found.status, found.detail) == ("ok", "")

    archive = SlideCut("s", str(tmp_path / "zips/s.zip"), path, 0.8, mask)
    outcome = cut_if_needed(archive, TileSpec(64, 0.5))
    assert outcome.status == "ok" and "1.6 times the patches'" in outcome.error
    assert cut_if_needed(archive, TileSpec(64, 0.8)).error == ""


def test_a_finished_archive_that_would_be_refused_today_is_kept_with_a_warning(slide, tmp_path):
    path, mask = slide
    archive = SlideCut("s", str(tmp_path / "zips/s.zip"), path, 4.0, mask, max_enlargement=4.0)
    assert cut_if_needed(archive, TileSpec(32, 1.0)).status == "ok"
    again = cut_if_needed(replace(archive, max_enlargement=2.0), TileSpec(32, 1.0))
    assert again.status == "skipped" and again.patches > 0
    assert "made before this rule" in again.error and "4.0 times" in again.error
    assert cut_if_needed(archive, TileSpec(32, 1.0)).error == "", "what the key allows is not warned of"


@pytest.mark.parametrize(
    ("module", "schema", "words"),
    [
        ("extract_features", "ExtractConfig", ["encoders=[a]", "output=o"]),
        ("cut_patches", "CutPatchesConfig", ["output=o"]),
        ("build_anchors", "BuildAnchorsConfig", ["slide_index=i", "output=o"]),
        ("pretrain_ijepath", "PretrainConfig", ["optimization.total_images_budget=9"]),
        ("preview_ijepath", "PreviewConfig", ["anchor_catalog=c", "output_dir=o"]),
        ("spatial_patches", "SpatialPatchesConfig", ["counts=c", "images=i", "output=o", "spots=s", "held_out=[]"]),
    ],
)
@pytest.mark.parametrize("value", ["0.5", "0", "-1", ".nan"])
def test_every_job_refuses_an_enlargement_below_one(module, schema, words, value):
    of = importlib.import_module(f"ray_jobs.{module}")
    argv = [*words, f"max_enlargement={value}"]
    configs, groups = getattr(of, "CONFIGS_DIR", "."), getattr(of, "GROUPS", ())
    with pytest.raises(UserError, match="max_enlargement"):
        load_config(getattr(of, schema), argv, configs_dir=configs, groups=groups)
