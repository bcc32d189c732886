"""The slide of a volume's states: as stored, on the grid, as trained; each with B-scans, en-face and a section.

Not here: the masks' slide (oct.pictures.mask_slides), what a plane looks like (oct.pictures.panels).
"""

from __future__ import annotations

from io import BytesIO

from oct.config import RunConfig
from oct.pictures.panels import OUTSIDE, Fit, draw_plane
from oct.pictures.samples import VolumeSample
from oct.pictures.views import Views
from pathray.draw.canvas import CARD, FAINT, INK, MUTED, Canvas, Picture

WIDTH, HEIGHT, MARGIN, HEADER = 1600.0, 920.0, 36.0, 92.0
ROW, ASIDE, GAP = 262.0, 236.0, 22.0
MAIN, SMALL, FACE, SECTION = 440.0, 228.0, 236.0, 236.0  # widths of the panels
ENLARGED_BELOW = 0.62  # of the middle B-scan's box: a narrower one has its image enlarged next to it
WORTH_ENLARGING = 0.7  # of the plane: an image that fills more is large enough
COLOURS = ("#e8860c", "#0b6bcb", "#0a9d6c")  # of the three B-scans
CUT = "#c2185b"  # of the section along the slow axis


def draw_states(sample: VolumeSample, config: RunConfig, scale: float = 1.5) -> Picture:
    """The slide of one volume, `[920 · scale, 1600 · scale, 3]`."""
    canvas = Canvas(WIDTH, HEIGHT, scale)
    draw_header(canvas, sample, "as stored, on the grid, and as the encoder gets it")
    stages = (
        ("As stored", sample.stored, facts_stored(sample)),
        ("On the grid", sample.on_grid, facts_on_grid(sample, config)),
        ("Augmented", sample.as_trained, facts_augmented(config)),
    )
    for i, (title, views, facts) in enumerate(stages):
        y = HEADER + 8 + i * ROW
        canvas.rect(MARGIN, y, ASIDE, ROW - 14, fill=CARD, radius=10)
        canvas.badge(MARGIN + 24, y + 24, str(i + 1), INK, 12)
        canvas.text(MARGIN + 44, y + 24, title, 16, INK, bold=True, anchor="lm")
        _draw_facts(canvas, facts, y + 46)
        draw_views(canvas, views, MARGIN + ASIDE + GAP, y, ROW - 14)
    _draw_legend(canvas, HEADER + 8 + 3 * ROW + 2)
    return canvas.to_picture()


def draw_header(canvas: Canvas, sample: VolumeSample, what: str) -> None:
    """Device, eye and region, and the path in the manifest, which is all that names a person."""
    header, origin = sample.header, sample.origin
    title = "   ·   ".join(part for part in (origin.device, sample.eye, origin.region) if part)
    canvas.text(MARGIN, 22, title, 24, bold=True)
    size = f"{header.frames} B-scans of {header.rows} × {header.columns}"
    canvas.text(MARGIN, 58, f"{origin.path}   ·   {size}   ·   {what}", 13, MUTED)
    canvas.line([(MARGIN, 84), (WIDTH - MARGIN, 84)], FAINT, 1)


def draw_views(canvas: Canvas, views: Views, x: float, y: float, height: float) -> None:
    """The middle B-scan large, the others small, the en-face projection and the section, in one row."""
    middle = len(views.b_scans) // 2
    others = [i for i in range(len(views.b_scans)) if i != middle]
    places = {middle: (x, y, MAIN, height)}
    half = (height - 6) / 2
    for k, i in enumerate(others):
        places[i] = (x + MAIN + GAP, y + k * (half + 6), SMALL, half)
    for i, plane in enumerate(views.b_scans):
        left, top, width, tall = places[i]
        title = f"B-scan {views.numbers[i] + 1} of {views.slices}"
        _, at, fit = draw_plane(canvas, plane, left, top, width, tall, title=title, colour=COLOURS[i])
        if i == middle:
            _draw_cut(canvas, left, at, fit, views)
            image = plane.crop()
            if fit.width < ENLARGED_BELOW * MAIN and image.greys.size < WORTH_ENLARGING * plane.greys.size:
                right, room = left + fit.width + GAP, MAIN - fit.width - GAP
                draw_plane(canvas, image, right, top, room, tall, title="the same, image only")
    face_x = x + MAIN + SMALL + 2 * GAP
    left, top, fit = draw_plane(canvas, views.en_face, face_x, y, FACE, height, title="En face (mean over depth)")
    _draw_places(canvas, left, top, fit, views)
    section_x = face_x + FACE + GAP
    draw_plane(canvas, views.section, section_x, y, SECTION, height, title="Along the slow axis", colour=CUT)


def _draw_places(canvas: Canvas, x: float, y: float, fit: Fit, views: Views) -> None:
    """Where B-scans and section are in the en-face projection: marks at its edges, which leave the image free."""
    for number, colour in zip(views.numbers, COLOURS, strict=False):
        at = y + (number + 0.5) / views.slices * fit.height
        for side, direction in ((x, -1), (x + fit.width, 1)):
            canvas.polygon([(side, at), (side + 9 * direction, at - 4), (side + 9 * direction, at + 4)], colour)
    at = x + (views.column + 0.5) / views.columns * fit.width
    canvas.line([(at, y), (at, y + fit.height)], CUT, 1, 4)


def _draw_cut(canvas: Canvas, x: float, y: float, fit: Fit, views: Views) -> None:
    """Where the section crosses a B-scan: marks inside its upper and its lower edge."""
    at = x + (views.column + 0.5) / views.columns * fit.width
    for edge, direction in ((y, 1), (y + fit.height, -1)):
        canvas.polygon([(at, edge + 8 * direction), (at - 4, edge), (at + 4, edge)], CUT)


def facts_stored(sample: VolumeSample) -> list[tuple[str, str]]:
    """(axis, spacing and its source) of the file."""
    geometry, names = sample.header.geometry, ("slow axis", "depth", "along a B-scan")
    rows = []
    for name, mm, source in zip(names, geometry.spacing_mm, geometry.sources, strict=True):
        value = "not known: fitted to the grid" if source == "assumed" else f"{mm:.4g} mm"
        rows.append((f"{name}   ·   {source.replace('_', ' ')}", value))
    if geometry.offsets_mm is not None:
        rows.append(("gaps of frames", "irregular, true places"))
    return rows


def facts_on_grid(sample: VolumeSample, config: RunConfig) -> list[tuple[str, str]]:
    """The grid, and how much of it is image."""
    d, h, w = config.data.image_size
    spacing = " × ".join("fitted" if mm != mm else f"{mm:g}" for mm in sample.sampled.spacing_mm)
    inside = sample.sampled.inside
    filled = " × ".join(str(last - first) for first, last in inside.tolist())
    return [
        ("grid", f"{d} × {h} × {w} voxels"),
        ("voxel (z × y × x), mm", spacing),
        ("filled by the image", filled),
        ("image share", f"{100 * sample.image_share:.1f}% of the grid"),
    ]


def facts_augmented(config: RunConfig) -> list[tuple[str, str]]:
    """What augmentation may do; depth is never flipped."""
    a = config.augment
    flips = [name for name, on in (("left-right", a.flip_lr), ("slow axis", a.flip_slow)) if on]
    return [
        ("flips (never depth)", ", ".join(flips) or "none"),
        ("part kept, per axis", f"{a.crop[0]:g} – {a.crop[1]:g}"),
        ("rotation, shift, scale", f"±{a.degrees:g}°, ±{a.translate:g}, ±{a.scale:g}"),
        ("noise after z-scoring", f"σ = {a.noise:g}"),
    ]


def _draw_facts(canvas: Canvas, facts: list[tuple[str, str]], y: float) -> None:
    for name, value in facts:
        canvas.text(MARGIN + 16, y, name, 10.5, MUTED)
        canvas.text(MARGIN + 16, y + 15, value, 12.5, INK, bold=True)
        y += 46


def _draw_legend(canvas: Canvas, y: float) -> None:
    canvas.rect(MARGIN, y, 14, 12, fill=OUTSIDE, outline=FAINT)
    text = "outside the image   ·   bars are millimetres, panels at their true proportions   ·   depth is downwards"
    canvas.text(MARGIN + 22, y - 1, text, 11, MUTED)


def png_bytes(picture: Picture) -> bytes:
    """The picture as a PNG."""
    from PIL import Image

    out = BytesIO()
    Image.fromarray(picture).save(out, "PNG", compress_level=6)
    return out.getvalue()
