"""Where a slide's tissue is, as a mask with its spacing. How it is found is in `pathray.wsi.tissue`."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pathray.api.slide import Slide
from pathray.wsi.kept_masks import cached_tissue_mask
from pathray.wsi.tissue import MASK_MPP


class TissueMask(NamedTuple):
    """`mask` bool ``[h, w]`` over the whole slide, True is tissue; `mpp` µm per pixel of the mask.

    Unpacks: ``mask, mpp = pathray.tissue(slide)``.
    """

    mask: npt.NDArray[np.bool_]
    mpp: float


def tissue(slide: Slide) -> TissueMask:
    """The tissue of a slide, bool ``[h, w]``, at 8 µm per pixel (at the slide's own spacing where that is coarser).

    The mask that extraction and anchors use: chroma above Otsu's threshold, cleaned. It is kept in the cache of local
    copies, so asking again is fast. Raises UnreadableUnit where the file is damaged.
    """
    mask = cached_tissue_mask(slide.reader, slide.mpp)
    return TissueMask(mask > 0, max(MASK_MPP, slide.mpp))
