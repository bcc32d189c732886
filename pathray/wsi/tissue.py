"""Finds the tissue of a slide without a mask: chroma at low resolution, Otsu's threshold, morphology.

For H&E and other coloured stains on a pale background. This is not quality control: folds, blood and pen marks of
tissue-like colour are included; black borders, shadows and unstained slides are not.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from pathray.wsi.reader import SlideReader
from pathray.wsi.thumbnail import whole

Mask = npt.NDArray[np.uint8]

SMOOTH_UM = 12.0  # standard deviation of the smoothing before the threshold
CLOSE_UM = 24.0  # gaps up to this width count as tissue
HOLE_UM = 80.0  # lumina up to a disc of this diameter count as tissue
SPECK_UM = 120.0  # specks smaller than a disc of this diameter are dust
MASK_MPP = 8.0  # of computed masks
VERSION = 2  # raise it with every change of the masks: cached masks are kept per version
MIN_CHROMA, MAX_CHROMA = 8.0, 40.0  # grey levels; Otsu's threshold is clipped to this range
BLACK = 40  # pixels darker than this in all channels are border, not tissue
HILL_BINS, HILL_SHARE, HILL_AREA = (
    11,
    2 / 3,
    0.01,
)  # of a faint stain: width in grey levels, share of the faint pixels, share of the image


def tissue_mask(reader: SlideReader, mpp0: float, *, mask_mpp: float = MASK_MPP) -> Mask:
    """The 0/1 tissue mask ``[h, w]`` at `mask_mpp` (µm per pixel), made from the coarsest level that is fine enough.

    Saturation is measured as chroma, max − min of the channels. Unlike HSV saturation, it does not amplify noise in
    dark pixels. Memory: strips of a level and about 40 bytes per mask pixel.
    """
    width, height = reader.level_shapes[0]
    scale = min(1.0, mpp0 / mask_mpp)
    size = max(1, int(width * scale + 0.5)), max(1, int(height * scale + 0.5))
    return mask_of(whole(reader, *size), mpp0 / scale)


def mask_of(image: npt.NDArray[np.uint8], mpp: float) -> Mask:
    """The 0/1 tissue mask ``[h, w]`` of an RGB image ``[h, w, 3]`` with pixels of `mpp` µm."""
    brightest = image.max(axis=2)
    chroma = (brightest - image.min(axis=2)).astype(np.float32)
    chroma[brightest < BLACK] = 0
    ndimage.gaussian_filter(chroma, SMOOTH_UM / mpp, output=chroma)
    strong = threshold(chroma)
    found = chroma > strong
    blue = image[:, :, 2].astype(np.float32) - image[:, :, :2].min(axis=2)
    ndimage.gaussian_filter(blue, SMOOTH_UM / mpp, output=blue)
    bluish = blue >= chroma / 2
    if (weak := faint_threshold(chroma, bluish, strong)) is not None:
        found |= bluish & (chroma > weak)
    return _clean(found, mpp)


def threshold(chroma: npt.NDArray[np.float32]) -> float:
    """Otsu's threshold, clipped to [MIN_CHROMA, MAX_CHROMA] above the background's own tint (the lower decile). On an
    empty or a full slide the histogram has one peak, and Otsu alone would cut through it."""
    ground = float(np.percentile(chroma, 10)) if chroma.size else 0.0
    ground = min(ground, MIN_CHROMA)
    return float(np.clip(otsu(chroma), ground + MIN_CHROMA, ground + MAX_CHROMA))


def faint_threshold(chroma: npt.NDArray[np.float32], bluish: npt.NDArray[np.bool_], strong: float) -> float | None:
    """The threshold of a faint stain next to a strong one, which the strong stain's threshold would miss; None if there
    is no faint stain.

    A faint stain is a peak in the histogram between background and `strong`: most of these pixels fall within HILL_BINS
    grey levels, clearly more than on the even slope caused by the rims of strongly stained tissue, and they cover at
    least HILL_AREA of the image. Only `bluish` pixels count, like eosin and haematoxylin, unlike a yellowed background.
    """
    low = min(float(np.percentile(chroma, 10)), MIN_CHROMA) + MIN_CHROMA if chroma.size else 0.0
    first, last = int(np.ceil(low)), int(strong)
    counts = np.histogram(chroma[bluish], bins=256, range=(0, 256))[0][first:last]
    even = HILL_BINS / max(1, len(counts))
    if even > 0.6 or counts.sum() < HILL_AREA * chroma.size:
        return None
    within = np.convolve(counts, np.ones(HILL_BINS), "same")
    if within.max() < max(HILL_SHARE, 1.6 * even) * counts.sum():
        return None
    hill = first + float(np.average(np.arange(len(counts)), weights=counts))
    return max(low, (low - MIN_CHROMA + hill) / 2)


def otsu(values: npt.NDArray[np.float32]) -> float:
    """The threshold in 0 … 255 that maximises the between-class variance w0·w1·(m1−m0)² (Otsu 1979, eq. 14)."""
    counts = np.histogram(values, bins=256, range=(0, 256))[0].astype(np.float64)
    below, level = np.cumsum(counts), np.arange(256) + 0.5
    above, moment = counts.sum() - below, np.cumsum(counts * level)
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (moment / below - (moment[-1] - moment) / above) ** 2
    between[~np.isfinite(between)] = -1
    best = np.flatnonzero(between == between.max())
    return float(best.mean() + 1)  # the upper edge of the bin, in the middle of a plateau


def _clean(mask: npt.NDArray[np.bool_], mpp: float) -> Mask:
    """The mask with narrow gaps closed, small lumina filled and dust removed."""
    radius = int(CLOSE_UM / 2 / mpp + 0.5)
    if radius > 0:
        padded = np.pad(mask, radius)
        padded = _dilate(padded, radius)
        padded = ~_dilate(~padded, radius)
        mask = padded[radius:-radius, radius:-radius]
    mask = _without_small(mask, _disc_pixels(SPECK_UM, mpp))
    return (~_without_small(~mask, _disc_pixels(HOLE_UM, mpp))).astype(np.uint8)


def _dilate(mask: npt.NDArray[np.bool_], radius: int) -> npt.NDArray[np.bool_]:
    """The mask dilated by a disc; large discs use the distance transform."""
    if radius > 8:
        return np.asarray(ndimage.distance_transform_edt(~mask) <= radius)
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    return np.asarray(ndimage.binary_dilation(mask, x * x + y * y <= radius * radius))


def _disc_pixels(diameter_um: float, mpp: float) -> float:
    return np.pi / 4 * (diameter_um / mpp) ** 2


def _without_small(mask: npt.NDArray[np.bool_], pixels: float) -> npt.NDArray[np.bool_]:
    """The mask without connected components of fewer than `pixels` pixels."""
    labels, count = ndimage.label(mask)
    if count == 0:
        return mask
    sizes = np.bincount(labels.ravel())
    keep = sizes >= pixels
    keep[0] = False
    return np.asarray(keep[labels])
