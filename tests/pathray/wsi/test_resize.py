import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pathray.wsi.resize import resize


def overlap_matrix(size, out):
    """Row i: the share of output pixel [i, i+1)·size/out that each input pixel covers, in float64, by brute force."""
    ratio, matrix = size / out, np.zeros((out, size))
    for i in range(out):
        for x in range(size):
            matrix[i, x] = max(0.0, min(x + 1, (i + 1) * ratio) - max(x, i * ratio)) / ratio
    return matrix


def linear_matrix(size, out):
    """Half-pixel centres, ends repeated."""
    matrix = np.zeros((out, size))
    for i in range(out):
        at = min(max((i + 0.5) * size / out - 0.5, 0), size - 1)
        low = min(int(at), size - 2) if size > 1 else 0
        matrix[i, low] += 1 - (at - low)
        if size > 1:
            matrix[i, low + 1] += at - low
    return matrix


def oracle(image, width, height):
    axes = [(image.shape[0], height), (image.shape[1], width)]
    rows, columns = (overlap_matrix(n, m) if m <= n else linear_matrix(n, m) for n, m in axes)
    return np.einsum("ah,hwc,bw->abc", rows, image.astype(float), columns, optimize=True)


sides = st.integers(1, 70)


@settings(max_examples=60, deadline=None)
@given(sides, sides, sides, sides, st.integers(0, 2**31))
def test_resize_is_area_down_and_linear_up_along_each_axis_rounded(h, w, height, width, seed):
    image = np.random.default_rng(seed).integers(0, 256, (h, w, 3), np.uint8)
    out = resize(image, width, height)
    assert out.shape == (height, width, 3) and out.dtype == np.uint8
    assert np.abs(out - oracle(image, width, height)).max() <= 0.5 + 1e-4


@pytest.mark.parametrize("by", [2, 3, 4, 5, 7, 8, 16, 64])
def test_whole_number_reductions_are_block_means_with_halves_up(by):
    image = np.random.default_rng(by).integers(0, 256, (6 * by, 5 * by, 3), np.uint8)
    sums = image.reshape(6, by, 5, by, 3).astype(np.int64).sum(axis=(1, 3))
    np.testing.assert_array_equal(resize(image, 5, 6), (2 * sums + by * by) // (2 * by * by))


@pytest.mark.parametrize("size", [(512, 512), (333, 400), (1000, 900)])
def test_a_constant_image_stays_what_it_is(size):
    for value in (0, 1, 127, 254, 255):
        assert (resize(np.full((513, 513, 3), value, np.uint8), *size) == value).all()


def test_an_image_of_the_right_size_is_passed_on():
    image = np.zeros((5, 7, 3), np.uint8)
    assert resize(image, 7, 5) is image


def test_masks_take_the_pixel_at_the_centre_and_make_no_new_values():
    mask = np.array([[0, 3], [7, 255]], np.uint8)
    np.testing.assert_array_equal(resize(mask, 4, 4, mask=True), np.kron(mask, np.ones((2, 2), np.uint8)))
    big = np.random.default_rng(0).choice(np.array([0, 9, 200], np.uint8), (101, 77))
    out = resize(big, 20, 33, mask=True)
    rows = np.floor((np.arange(33) + 0.5) * 101 / 33).astype(int)
    columns = np.floor((np.arange(20) + 0.5) * 77 / 20).astype(int)
    np.testing.assert_array_equal(out, big[np.ix_(rows, columns)])


def test_grey_images_resize_as_one_channel_of_colour_ones():
    image = np.random.default_rng(1).integers(0, 256, (61, 47, 3), np.uint8)
    for size in [(20, 30), (47 * 2, 61 * 2)]:
        np.testing.assert_array_equal(resize(image[:, :, 1].copy(), *size), resize(image, *size)[:, :, 1])
