"""The slide of a volume's masks: every kind on a B-scan, in the en-face projection and as a solid of hidden tokens.

Not here: masks themselves (oct.masks), the states of a volume (oct.pictures.slides).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from oct.config import RunConfig
from oct.pictures.panels import FOOT, OUTSIDE, Fit, draw_foot, draw_greys, fit_plane
from oct.pictures.samples import TokenMask, VolumeSample
from oct.pictures.slides import HEADER, MARGIN, WIDTH, draw_header
from oct.pictures.solid import draw_solid, solid_height
from oct.pictures.views import Plane
from pathray.draw.canvas import CARD, FAINT, INK, MUTED, PAPER, Canvas, Picture, blend, with_alpha

GAP, COLUMNS, PAD = 20.0, 4, 14.0
B_SCAN, FACE, SOLID = 250.0, 220.0, 290.0  # the greatest heights, with what is below
HIDDEN, TINT = "#e8860c", 0.62


def draw_masks_slide(sample: VolumeSample, config: RunConfig, scale: float = 1.5) -> Picture:
    """The slide of one volume's masks, `[height · scale, 1600 · scale, 3]`, as high as its panels are; the config's
    kind comes first."""
    width = (WIDTH - 2 * MARGIN - (COLUMNS - 1) * GAP) / COLUMNS
    height = HEADER + 4 + _column_height(sample, config, width - 2 * PAD)
    canvas = Canvas(WIDTH, height + 44, scale)
    draw_header(canvas, sample, "hidden tokens on the augmented volume")
    for i, mask in enumerate(sample.masks):
        x = MARGIN + i * (width + GAP)
        canvas.rect(x, HEADER + 4, width, height - HEADER - 4, fill=CARD, radius=10)
        _draw_column(canvas, sample, config, mask, x + PAD, HEADER + 16, width - 2 * PAD)
    _draw_legend(canvas, sample, height + 16)
    return canvas.to_picture()


def _draw_column(
    canvas: Canvas, sample: VolumeSample, config: RunConfig, mask: TokenMask, x: float, y: float, width: float
) -> None:
    hidden, tokens = int(mask.hidden.sum()), mask.hidden.size
    own = "   (this run)" if mask.kind == config.mask.kind else ""
    canvas.text(x, y, mask.title + own, 15, INK, bold=True)
    canvas.text(x, y + 22, f"hidden {hidden:,} of {tokens:,} tokens, visible {tokens - hidden:,}", 11.5, MUTED)
    y += 46
    views = sample.as_trained
    middle = len(views.numbers) // 2
    number = views.numbers[middle]
    token = number // config.model.patch_size[0]
    canvas.text(x, y, f"B-scan {number + 1} of {views.slices}", 11.5, INK, bold=True)
    end = y + 18 + _draw_over(canvas, views.b_scans[middle], mask.hidden[token].astype(float), x, y + 18, width, B_SCAN)
    canvas.text(x, end, "En face: share of the depth that is hidden", 11.5, INK, bold=True)
    end += 18 + _draw_over(canvas, views.en_face, mask.hidden.mean(axis=1), x, end + 18, width, FACE)
    canvas.text(x, end, "Hidden tokens", 11.5, INK, bold=True)
    draw_solid(canvas, mask.hidden, token_proportions(sample, config), x, end + 18, width, SOLID - 18, HIDDEN)


def _column_height(sample: VolumeSample, config: RunConfig, width: float) -> float:
    views = sample.as_trained
    planes = ((views.b_scans[len(views.numbers) // 2], B_SCAN), (views.en_face, FACE))
    heights = (fit_plane(plane, width, most - FOOT).height + FOOT + 28 for plane, most in planes)
    return 58 + sum(heights) + 18 + solid_height(config.tokens, token_proportions(sample, config), width, SOLID - 18)


def token_proportions(sample: VolumeSample, config: RunConfig) -> tuple[float, float, float]:
    """Sides (z, y, x) of a token in mm; where an axis was fitted, its size on the grid of the config."""
    known = zip(sample.sampled.spacing_mm, config.data.spacing_mm, config.model.patch_size, strict=True)
    z, y, x = ((grid if mm != mm else mm) * patch for mm, grid, patch in known)
    return z, y, x


def _draw_over(
    canvas: Canvas, plane: Plane, share: npt.NDArray[np.floating], x: float, y: float, width: float, height: float
) -> float:
    """The plane with its tokens tinted by the share `[h, w]` of them that is hidden, and the tokens' lines. Returns the
    height that it takes."""
    fit = fit_plane(plane, width, height - FOOT)
    draw_greys(canvas, tint(plane.to_pixels(OUTSIDE), share), x, y, fit)
    rows, columns = share.shape
    for i in range(rows + 1):
        _token_line(canvas, fit, x, y + i * fit.height / rows, True)
    for i in range(columns + 1):
        _token_line(canvas, fit, x + i * fit.width / columns, y, False)
    canvas.rect(x, y, fit.width, fit.height, outline=FAINT)
    draw_foot(canvas, fit, plane, x, y + fit.height, width)
    return fit.height + FOOT + 10


def tint(pixels: Picture, share: npt.NDArray[np.floating]) -> Picture:
    """Pixels `[h, w, 3]`, whose h × w are whole tokens, with the colour of hidden ones laid over by their share."""
    h, w = pixels.shape[:2]
    assert h % share.shape[0] == 0 and w % share.shape[1] == 0, (pixels.shape, share.shape)
    weight = TINT * share.repeat(h // share.shape[0], axis=0).repeat(w // share.shape[1], axis=1)[..., None]
    colour = np.array(blend(HIDDEN, HIDDEN, 0.0), np.float64)
    out: Picture = np.rint(pixels * (1 - weight) + colour * weight).astype(np.uint8)
    return out


def _token_line(canvas: Canvas, fit: Fit, x: float, y: float, across: bool) -> None:
    end = (x + fit.width, y) if across else (x, y + fit.height)
    canvas.line([(x, y), end], with_alpha(PAPER, 0.22), 0.4)


def _draw_legend(canvas: Canvas, sample: VolumeSample, y: float) -> None:
    canvas.rect(MARGIN, y, 14, 12, fill=HIDDEN)
    canvas.text(MARGIN + 22, y - 1, "hidden: to be predicted", 11, MUTED)
    canvas.rect(MARGIN + 190, y, 14, 12, fill=OUTSIDE, outline=FAINT)
    text = "outside the image   ·   what is not tinted is what the context encoder sees"
    text += "".join(f"   ·   not possible on this grid: {why}" for why in sample.left_out)
    canvas.text(MARGIN + 212, y - 1, text, 11, MUTED)
