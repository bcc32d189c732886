"""Pictures of single samples: a static flow of all steps, an animated reveal of it, a high-resolution frame, a zoom.

    preview_s003_<slide_id>_<anchor>.png          all steps
    ijepa_s003_<slide_id>_<anchor>.gif            the same, step by step
    ijepa_s003_<slide_id>_<anchor>_all_steps.png  the last frame, `final_png_scale` times as large
    zoom4_s003_<slide_id>_<anchor>.png            steps 2 to 5, large

Layout and files only: the panels are in ijepath.pictures.panels, the sample in ijepath.pictures.sample.
"""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO

from ijepath.pictures.panels import ALL, LEGEND, STEPS, Step, draw_legend, draw_tokens
from ijepath.pictures.sample import PreviewSample
from ijepath.pictures.scheme import PARTS, draw_scheme
from pathray.draw.canvas import CARD, FAINT, INK, MUTED, Canvas, Picture
from pathray.draw.gif import gif_bytes

WIDTH, HEIGHT = 1600.0, 900.0
MARGIN, GAP, HEADER = 40.0, 26.0, 96.0
CARD_W = (WIDTH - 2 * MARGIN - 2 * GAP) / 3
CARD_H = (HEIGHT - HEADER - 36 - GAP) / 2
SQUARE = 300.0
GIF_SCALE = 0.8
FRAME_MS, STEP_MS, LAST_MS = 450, 1300, 5000


def stem(index: int, sample: PreviewSample) -> str:
    """`s003_<slide_id>_<anchor>`."""
    return f"s{index:03d}_{file_name(sample.slide_id)}_{sample.anchor}"


def file_name(slide_id: str) -> str:
    """A slide id with a dash for every character that is unsafe in a file name.

    >>> file_name("TCGA/01 A")
    'TCGA-01-A'
    """
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in slide_id)


def draw_flow(sample: PreviewSample, scale: float = 1.0) -> Picture:
    """All six steps on one 16:9 page, `[900 · scale, 1600 · scale, 3]`."""
    canvas = _page(sample, scale)
    for step in range(6):
        _card(canvas, sample, step, ALL)
    return canvas.to_picture()


def reveal(sample: PreviewSample, scale: float = GIF_SCALE) -> Iterator[tuple[Picture, int]]:
    """The flow piece by piece: (picture, milliseconds to show it). The last picture is the whole flow."""
    canvas = _page(sample, scale)
    for step in range(6):
        _placeholder(canvas, step)
    for step in range(6):
        parts = STEPS[step].parts(sample) if step < 5 else PARTS
        for part in range(1, parts + 1):
            _card(canvas, sample, step, part)
            last = step == 5 and part == parts
            yield canvas.to_picture(), LAST_MS if last else (STEP_MS if part == parts else FRAME_MS)


def draw_zoom(sample: PreviewSample, scale: float = 1.0) -> Picture:
    """Steps 2 to 5 in two rows of two, large."""
    side, gap = 720.0, 40.0
    width = 2 * side + 3 * gap
    canvas = Canvas(width, HEADER + 2 * (side + 84) + 36, scale)
    _header(canvas, sample, width, gap)
    for i, step in enumerate(STEPS[1:5]):
        x, y = gap + (i % 2) * (side + gap), HEADER + (i // 2) * (side + 84)
        canvas.badge(x + 14, y + 14, str(i + 2), INK, 13)
        canvas.text(x + 38, y + 14, step.title, 20, INK, bold=True, anchor="lm")
        step.draw(canvas, sample, (x, y + 36, side), ALL)
        facts = "   ·   ".join(f"{name} {value}" for name, value in step.facts(sample))
        canvas.text(x, y + side + 42, facts, 15, MUTED)
        for column in (0, 1) if step.draw is draw_tokens else ():
            rows = LEGEND[2 * column : 2 * column + 2]
            draw_legend(canvas, x + column * side / 2, y + side + 70, side / 2 - 10, 13, rows)
    return canvas.to_picture()


def png_bytes(picture: Picture) -> bytes:
    from PIL import Image

    out = BytesIO()
    Image.fromarray(picture).save(out, "PNG", compress_level=6)
    return out.getvalue()


def preview_files(
    index: int, sample: PreviewSample, *, final_png_scale: float = 2.0, zoom: bool = False
) -> Iterator[tuple[str, bytes]]:
    """(name, content) of every file of one sample."""
    name = stem(index, sample)
    yield f"preview_{name}.png", png_bytes(draw_flow(sample))
    yield f"ijepa_{name}.gif", gif_bytes(list(reveal(sample)))
    yield f"ijepa_{name}_all_steps.png", png_bytes(draw_flow(sample, final_png_scale))
    if zoom:
        yield f"zoom4_{name}.png", png_bytes(draw_zoom(sample))


def _page(sample: PreviewSample, scale: float) -> Canvas:
    canvas = Canvas(WIDTH, HEIGHT, scale)
    _header(canvas, sample, WIDTH, MARGIN)
    return canvas


def _header(canvas: Canvas, sample: PreviewSample, width: float, margin: float) -> None:
    canvas.text(margin, 24, "I-JEPATH: predict high-resolution features from low-resolution context", 24, bold=True)
    where = f"slide {sample.slide_id}   ·   anchor ({sample.center[0]}, {sample.center[1]})"
    note = f"   ·   position {sample.position} of the training order"
    if sample.replaced:
        note += f", replacement {sample.replaced}"
    canvas.text(margin, 60, where + note, 14, MUTED)
    canvas.line([(margin, 86), (width - margin, 86)], FAINT, 1)


def _corner(step: int) -> tuple[float, float]:
    return MARGIN + (step % 3) * (CARD_W + GAP), HEADER + 8 + (step // 3) * (CARD_H + GAP)


def _placeholder(canvas: Canvas, step: int) -> None:
    x, y = _corner(step)
    canvas.rect(x, y, CARD_W, CARD_H, fill=CARD, radius=10)
    canvas.badge(x + 26, y + 27, str(step + 1), FAINT, 12)


def _card(canvas: Canvas, sample: PreviewSample, step: int, part: int) -> None:
    """One step on its card. Drawing it again with a larger part covers the earlier one."""
    x, y = _corner(step)
    _placeholder(canvas, step)
    canvas.badge(x + 26, y + 27, str(step + 1), INK, 12)
    title = STEPS[step].title if step < 5 else "Predict features, not pixels"
    canvas.text(x + 46, y + 27, title, 16, INK, bold=True, anchor="lm")
    if step == 5:
        draw_scheme(canvas, sample, (x + 18, y + 50, CARD_W - 36, CARD_H - 66), part)
        return
    STEPS[step].draw(canvas, sample, (x + 16, y + 50, SQUARE), part)
    _draw_facts(canvas, sample, STEPS[step], x + SQUARE + 34, y + 50, CARD_W - SQUARE - 48)


def _draw_facts(canvas: Canvas, sample: PreviewSample, step: Step, x: float, y: float, width: float) -> None:
    """Facts as label over value, then the caption, next to a panel's picture."""
    for name, value in step.facts(sample):
        canvas.text(x, y, name, 11, MUTED)
        canvas.text(x, y + 14, value, 14, INK, bold=True)
        y += 39
    if step.draw is draw_tokens:
        draw_legend(canvas, x, y + 6, width, 10.5)
    else:
        canvas.paragraph(x, y + 8, step.caption(sample), 12, width)
