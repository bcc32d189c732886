import numpy as np
import pytest

from pathray.wsi.reader import open_slide
from pathray.wsi.thumbnail import thumbnail, whole
from pathray.wsi.tissue import faint_threshold, mask_of, otsu, threshold, tissue_mask
from tests.builders.slides import REAL, tissue_image, write_slide


def share(mask, box=None):
    top, bottom, left, right = box or (0, 1, 0, 1)
    h, w = mask.shape
    return mask[int(top * h) : int(bottom * h), int(left * w) : int(right * w)].mean()


def test_stained_tissue_is_found_and_ground_is_not(tmp_path):
    image = tissue_image(1600, 1200, seed=1)
    slide = open_slide(str(write_slide(tmp_path / "s.tif", image=image, mpp=2.0)))
    mask = tissue_mask(slide, 2.0)
    assert mask.shape == (300, 400) and mask.dtype == np.uint8 and set(np.unique(mask)) == {0, 1}
    truth = image.reshape(300, 4, 400, 4, 3).mean(axis=(1, 3))
    truth = truth.max(axis=2) - truth.min(axis=2) > 20
    assert (truth == mask).mean() > 0.97
    assert share(mask, (0.45, 0.55, 0.45, 0.55)) == 1 and share(mask, (0, 0.05, 0, 1)) < 0.01


def test_an_empty_slide_has_no_tissue_and_a_full_one_nothing_else():
    rng = np.random.default_rng(0)
    for ground in ((244, 243, 245), (225, 222, 228), (200, 200, 200), (255, 255, 255)):
        empty = np.clip(np.array(ground) + rng.normal(0, 4, (300, 300, 3)), 0, 255).astype(np.uint8)
        assert mask_of(empty, 8.0).sum() == 0
    full = np.clip(np.array((215, 140, 190)) + rng.normal(0, 12, (300, 300, 3)), 0, 255).astype(np.uint8)
    assert mask_of(full, 8.0).all()


def test_black_borders_dust_and_large_tears_stay_out_small_lumina_do_not():
    image = np.full((400, 400, 3), 243, np.uint8)
    image[100:300, 100:300] = (214, 140, 190)
    image[:, :30] = (14, 0, 22)  # the scanner's black border
    image[20:24, 200:204] = (190, 60, 120)  # 32 µm of dust
    image[180:230, 180:230] = 243  # a tear of 400 µm
    image[120:126, 120:126] = 243  # a lumen of 48 µm
    mask = mask_of(image, 8.0)
    assert mask[:, :25].sum() == 0 and mask[10:40, 190:220].sum() == 0
    assert mask[190:220, 190:220].sum() == 0 and mask[115:130, 115:130].all()
    assert abs(int(mask[90:310, 90:310].sum()) - (200 * 200 - 50 * 50)) < 2000


def test_a_pale_ground_with_a_tint_is_still_ground():
    image = np.full((200, 200, 3), (245, 240, 236), np.uint8)
    image[50:150, 50:150] = (205, 150, 190)
    mask = mask_of(image, 8.0)
    assert mask[60:140, 60:140].all() and mask[:40].sum() == 0


def test_otsu_maximises_the_variance_between_the_classes():
    rng = np.random.default_rng(1)
    values = np.concatenate([rng.normal(20, 5, 5000), rng.normal(120, 20, 3000)]).clip(0, 255).astype(np.float32)

    def between(t):
        low, high = values[values < t], values[values >= t]
        return len(low) * len(high) * (high.mean() - low.mean()) ** 2 if len(low) and len(high) else 0

    best = max(between(t) for t in range(1, 256))
    assert between(otsu(values)) > 0.999 * best


def test_memory_follows_the_strip_not_the_slide(tmp_path, monkeypatch):
    """A single-level slide is read in strips; in strips or in one piece, the mask is the same but for the seams."""
    import pathray.wsi.thumbnail as module

    image = tissue_image(2000, 1600, seed=2)
    slide = open_slide(str(write_slide(tmp_path / "s.tif", image=image, mpp=1.0, downsamples=(1,))))
    expected, largest = tissue_mask(slide, 1.0), []
    read_level = slide.read_level
    monkeypatch.setattr(module, "STRIP_PIXELS", 300_000)
    monkeypatch.setattr(slide, "read_level", lambda *a: largest.append(a[3] * a[4]) or read_level(*a))
    striped = tissue_mask(slide, 1.0)
    assert max(largest) <= 320_000 and sum(largest) == 2000 * 1600
    assert striped.shape == expected.shape and (striped != expected).mean() < 0.002


def test_the_coarsest_serving_level_is_read(tmp_path):
    slide = open_slide(str(write_slide(tmp_path / "s.tif", width=1600, height=1200, mpp=2.0, downsamples=(1, 2, 4, 8))))
    read, read_level = [], slide.read_level
    slide.read_level = lambda level, *a: read.append(level) or read_level(level, *a)
    assert tissue_mask(slide, 2.0).shape == (300, 400)
    assert read == [2]


@pytest.mark.parametrize(
    ("name", "mpp", "share_seen"),  # shares as outlined by eye on the pictures
    [("CMU-1-Small-Region.svs", 0.499, 0.345), ("TCGA-CR-7395-01A-01-TS1.svs", 0.5, 0.635)],
)
def test_real_slides_give_the_tissue_that_one_sees(name, mpp, share_seen):
    path = REAL / name
    if not path.is_file():
        pytest.skip(f"no real slide at {path}")
    slide = open_slide(str(path))
    mask = tissue_mask(slide, mpp)
    assert share(mask) == pytest.approx(share_seen, abs=0.03)
    image = whole(slide, mask.shape[1], mask.shape[0]).astype(int)
    chroma = image.max(axis=2) - image.min(axis=2)
    assert np.median(chroma[mask == 1]) > 45 and np.median(chroma[mask == 0]) < 8


def test_thumbnails_keep_the_aspect_and_come_from_the_pyramid(tmp_path):
    image = tissue_image(1000, 600)
    slide = open_slide(str(write_slide(tmp_path / "s.tif", image=image, codec="deflate", downsamples=(1, 2, 4))))
    for side, shape in [(500, (300, 500, 3)), (333, (200, 333, 3)), (5000, (600, 1000, 3)), (1, (1, 1, 3))]:
        assert thumbnail(slide, side).shape == shape
    np.testing.assert_array_equal(thumbnail(slide, 500), slide.read_level(1, 0, 0, 500, 300))
    coarse = thumbnail(slide, 100).astype(int)
    truth = image.reshape(60, 10, 100, 10, 3).mean(axis=(1, 3))
    assert np.abs(coarse - truth).mean() < 2


def stained(*parts, ground=(243.0, 241.0, 244.0), side=300):
    """A picture with discs of colours on a ground, with noise: (centre x, radius, colour) each."""
    y, x = np.mgrid[0:side, 0:side]
    image = np.full((side, side, 3), ground)
    for at, radius, colour in parts:
        image[(x - at) ** 2 + (y - side / 2) ** 2 < radius**2] = colour
    noise = np.random.default_rng(0).normal(0, 2, (side, side, 1))
    return np.clip(image + noise, 0, 255).astype(np.uint8)


def disc(at, radius, side=300):
    y, x = np.mgrid[0:side, 0:side]
    return (x - at) ** 2 + (y - side / 2) ** 2 < radius**2


@pytest.mark.parametrize(
    ("strong", "weak"),
    [
        ((222, 140, 190), (236, 220, 230)),  # eosin, and a pale section of it
        ((120, 70, 40), (205, 210, 223)),  # DAB, and a faint counterstain
        ((120, 70, 40), (190, 200, 220)),
        ((90, 50, 130), (214, 206, 226)),  # haematoxylin
    ],
)
def test_a_faint_stain_beside_a_strong_one_is_tissue_too(strong, weak):
    found = mask_of(stained((80, 60, strong), (220, 50, weak)), 8.0) > 0
    both = disc(80, 60) | disc(220, 50)
    assert (found & both).sum() > 0.98 * both.sum() and (found & ~both).sum() < 0.02 * (~both).sum()


@pytest.mark.parametrize("tint", [(240, 236, 226), (238, 232, 222), (244, 240, 228)])
def test_a_yellowed_part_of_the_ground_is_no_faint_stain(tint):
    image = stained((80, 60, (222, 140, 190)), ground=(250.0, 250.0, 250.0))
    yellowed = image.copy()
    yellowed[:, 200:] = np.clip(np.array(tint) + np.random.default_rng(1).normal(0, 2, (300, 100, 1)), 0, 255)
    assert not (mask_of(yellowed, 8.0)[:, 205:] > 0).any()
    assert np.array_equal(mask_of(yellowed, 8.0)[:, :190], mask_of(image, 8.0)[:, :190])


def test_the_rim_of_a_strongly_stained_section_is_no_faint_stain():
    y, x = np.mgrid[0:300, 0:300]
    inside = np.clip((90 - np.hypot(x - 150, y - 150)) / 40, 0, 1)[..., None]  # fades out over 40 pixels
    image = (243 * (1 - inside) + np.array((222, 140, 190)) * inside).astype(np.uint8)
    chroma = (image.max(axis=2) - image.min(axis=2)).astype(np.float32)
    assert faint_threshold(chroma, np.ones(chroma.shape, bool), threshold(chroma)) is None
