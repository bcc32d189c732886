"""Samples for pictures: the same volumes as training reads, with its draws and masks; eyes and files as they are."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from oct.config import RunConfig
from oct.masks import MaskSampler
from oct.pictures.mask_slides import HIDDEN, TINT, draw_masks_slide, tint
from oct.pictures.previews import describe_sample, preview_page, read_samples, slide_names
from oct.pictures.samples import augment, draw_masks, find_origins, read_sample, shuffle
from oct.pictures.slides import draw_states
from oct.recipe import OctRecipe
from oct.sections import DataConfig, MaskConfig, ModelConfig
from pathray.errors import UserError
from pathray.train.recipe import Progress
from tests.builders.oct.files import SIZE, person_scans, write_volumes
from tests.builders.oct.scans import Scan, index_scans
from tests.builders.oct.volumes import unit

GRID = {"image_size": [16, 64, 64], "spacing_mm": [0.4, 0.04, 0.12]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("volumes")
    write_volumes(folder, person_scans(4))
    return folder


@pytest.fixture(scope="module")
def config(folder):
    return RunConfig(data=DataConfig(manifest=f"{folder}/manifest.tsv", **GRID), model=ModelConfig(name="vit_micro"))


@pytest.fixture(scope="module")
def sample(config):
    return read_sample(config, find_origins(config)[0], 3)


def test_a_manifest_and_an_index_give_the_same_volumes(tmp_path):
    scans = [Scan("1"), Scan("2", "L", header_eye="L"), Scan("3", device="zeiss_cirrus", exclusion="circular")]
    index = index_scans(tmp_path, scans)
    listed = find_origins(RunConfig(data=DataConfig(manifest=f"{tmp_path}/manifest.tsv")))
    indexed = find_origins(RunConfig(data=DataConfig(index=index.path)))
    assert [o.path for o in listed] == [scan.path for scan in scans]
    assert [o.path for o in indexed] == [scan.path for scan in scans[:2]], "an index knows what is no volume"
    assert [(o.url, o.laterality, o.device) for o in listed[:2]] == [(o.url, o.laterality, o.device) for o in indexed]
    of_one = RunConfig(data=DataConfig(index=index.path, devices=["topcon_triton"]))
    assert len(find_origins(of_one)) == 2
    with pytest.raises(UserError, match="data.manifest"):
        find_origins(RunConfig())


def test_the_seed_chooses_and_every_volume_comes_once(config):
    origins = find_origins(config)
    orders = {tuple(o.path for o in shuffle(origins, seed)) for seed in range(8)}
    assert len(orders) > 1 and all(sorted(order) == sorted(o.path for o in origins) for order in orders)
    assert shuffle(origins, 5) == shuffle(origins, 5)


def test_the_grid_holds_the_share_that_size_and_spacing_say(sample):
    """6.4 × 1.92 × 6.4 mm on voxels of 0.4 × 0.04 × 0.12: 16 of 16, 48 of 64, 53 of 64."""
    assert sample.image_share == pytest.approx(48 / 64 * 53 / 64)
    assert sample.stored.slices == SIZE[0] and sample.eye == "right eye (OD)"
    assert sample.on_grid.b_scans[1].size_mm == pytest.approx((2.56, 7.68))


def test_the_augmented_volume_is_what_the_recipe_would_train_on(config, sample):
    recipe = OctRecipe(config)
    drawn = unit(config, 0, 3)
    micro = {
        **{name: torch.from_numpy(value)[None] for name, value in drawn.items()},
        "image": torch.from_numpy(sample.sampled.image)[None],
        "inside": torch.from_numpy(sample.sampled.inside)[None],
    }
    trained = recipe.prepare(micro, Progress(0, 1, 1))["image"][0, 0].numpy()
    assert np.array_equal(sample.augmented, trained)
    assert not np.array_equal(sample.augmented, augment(config, sample.sampled, 4))
    hidden = np.flatnonzero(sample.masks[0].hidden)
    assert np.array_equal(hidden, drawn["target_0"]), "the mask is the one of this position"


def test_masks_of_every_kind_hide_exactly_k_tokens(config):
    masks, left_out = draw_masks(config, 0)
    assert [mask.title for mask in masks] == ["block", "random", "vjepa, short blocks", "vjepa, long blocks"]
    assert left_out == []
    for mask in masks:
        own = replace(config, mask=MaskConfig(kind=mask.kind))
        number = 1 if mask.title.endswith("long blocks") else 0
        assert mask.hidden.sum() == MaskSampler.of(own).hidden[number] and mask.hidden.shape == (4, 4, 4)


def test_a_kind_that_the_grid_does_not_allow_is_said(config):
    tiny = replace(config, data=DataConfig(image_size=[16, 16, 32], spacing_mm=[0.4, 0.1, 0.1]))
    masks, left_out = draw_masks(tiny, 0)
    assert {mask.kind for mask in masks} == {"block", "random"} and left_out[0].startswith("vjepa: ")
    with pytest.raises(UserError, match="short_scale"):
        draw_masks(replace(tiny, mask=MaskConfig(kind="vjepa")), 0)


def test_eyes_that_differ_are_not_settled(sample):
    assert replace(sample, origin=replace(sample.origin, laterality="L")).eye.endswith("manifest L, header R")
    unknown = replace(sample.header, laterality="")
    assert replace(sample, header=unknown).eye == "right eye (OD)", "the manifest says it"
    assert replace(sample, header=unknown, origin=replace(sample.origin, laterality="")).eye == "eye not known"


def test_slides_have_their_size_and_the_page_names_what_it_shows(config, sample):
    assert draw_states(sample, config, 0.5).shape == (460, 800, 3)
    slide = draw_masks_slide(sample, config, 0.5)
    assert slide.shape[1] == 800 and 300 < slide.shape[0] < 520
    entry = describe_sample(sample, 0)
    assert "0.04 (shared measures)" in entry.cells and slide_names(sample, 0) == entry.slides
    page = preview_page(config, [entry], [("a<b>.dcm", "empty: no bytes")], "gs://user:secret@bucket/m.tsv")
    assert f'src="{entry.slides[0]}"' in page and "a&lt;b&gt;.dcm" in page and "secret" not in page
    assert "62.1%" in page and sample.origin.path in page


def test_a_tint_covers_hidden_tokens_and_no_others():
    pixels = np.full((8, 8, 3), 100, np.uint8)
    share = np.zeros((2, 4))
    share[1, 2] = 1.0
    out = tint(pixels, share)
    expected = np.rint(100 * (1 - TINT) + TINT * np.array([int(HIDDEN[i : i + 2], 16) for i in (1, 3, 5)]))
    assert (out[4:, 4:6] == expected).all()
    out[4:, 4:6] = 100
    assert (out == 100).all()


def test_files_that_are_no_volumes_are_left_out_and_the_next_ones_drawn(tmp_path):
    scans = person_scans(3)
    manifest = write_volumes(tmp_path, scans)
    (tmp_path / scans[0].path).write_bytes(b"PK\x03\x04")
    (tmp_path / scans[1].path).unlink()
    config = RunConfig(data=DataConfig(manifest=manifest, **GRID), model=ModelConfig(name="vit_micro"))
    left_out: list[tuple[str, str]] = []
    found = list(read_samples(config, find_origins(config), 2, left_out))
    assert [s.origin.path for s in found] == [scans[2].path]
    assert [(path, why.partition(":")[0]) for path, why in left_out] == [
        (scans[0].path, "not_dicom"),
        (scans[1].path, "missing"),
    ]


def test_a_real_volume_without_pixel_spacing_is_fitted_and_not_scaled(shared_data):
    """2008 says the distance of its frames and nothing of its pixels."""
    data = DataConfig(manifest=f"{shared_data}/oct/retinal_oct/manifest.tsv", **GRID)
    config = RunConfig(data=data, model=ModelConfig(name="vit_micro"))
    (origin,) = (o for o in find_origins(config) if o.person == "2008")
    sample = read_sample(config, origin, 0)
    assert sample.stored.b_scans[0].size_mm == (None, None)
    assert math.isnan(sample.sampled.spacing_mm[1]) and sample.on_grid.b_scans[0].size_mm == (None, None)
    assert sample.stored.en_face.size_mm[0] == pytest.approx(5 * 0.067)
    retina, rows = sample.stored.b_scans[0].greys.mean(axis=1), np.arange(450)
    centre = float((retina**4 * rows).sum() / (retina**4).sum())
    on_grid = sample.on_grid.b_scans[0].greys.mean(axis=1)
    share = float((on_grid**4 * np.arange(64)).sum() / (on_grid**4).sum()) / 64
    assert share == pytest.approx(centre / 450, abs=0.05), "the retina stays at its depth"
