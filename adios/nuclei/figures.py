"""Pictures of the nuclei benchmark: metrics over training with their floors, and what was marked on some images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt

from adios.nuclei.agreement import Choice, Pair, dice
from adios.nuclei.segmentation import Bools, threshold_red
from pathray.draw.canvas import ACCENTS, INK, MUTED, Canvas, Picture
from pathray.draw.charts import plain_axes
from pathray.draw.figures import plain_text

Row = Mapping[str, Any]
PANELS = (("dice", "Dice"), ("iou", "IoU"), ("pq", "PQ of objects"))
HIT, FALSE, MISSED = "#0a9d6c", "#e8860c", "#c0392b"
FLOORS = (("otsu", "Otsu in red, no training", "--"), ("everything", "everything marked", ":"))
COLUMN, GAP, MARGIN, HEADER, CAPTION = 240.0, 10.0, 18.0, 92.0, 20.0


def draw_results(found: Mapping[str, Any]) -> bytes:
    """A PNG: Dice, IoU and PQ over training, with intervals over test images; the oracle, dashed and labelled as
    optimistic; Otsu's threshold and everything marked as lines."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14.0, 5.0), dpi=130, facecolor="white")
    FigureCanvasAgg(figure)
    count = len(found["judging"])
    figure.text(0.012, 0.97, "Masks against nuclei", va="top", fontsize=15, fontweight="bold", color=INK)
    words = f"{count} test images; channel and rule chosen on {len(found['choosing'])} others; bands: 95% over images"
    figure.text(0.012, 0.9, words, va="top", fontsize=9.5, color=MUTED)
    rows = found["checkpoints"]
    key = "step" if all(row.get("step") is not None for row in rows) else "images_seen"
    for i, (metric, title) in enumerate(PANELS):
        axes = figure.add_subplot(1, 3, i + 1)
        _panel(axes, rows, found, metric, key)
        axes.set_title(title, loc="left", fontsize=11.5, fontweight="bold", color=INK)
        axes.set_xlabel("iterations" if key == "step" else "images seen", fontsize=9, color=MUTED)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="lower left",
        ncols=4,
        fontsize=9.5,
        frameon=False,
        labelcolor=INK,
        bbox_to_anchor=(0.006, 0),
    )
    figure.tight_layout(rect=(0, 0.08, 1, 0.87), w_pad=2.0)
    out = BytesIO()
    figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()


def _panel(axes: Any, rows: Sequence[Row], found: Mapping[str, Any], metric: str, key: str) -> None:
    x = np.array([row[key] or 0 for row in rows], np.float64)
    ends = (x.min() - 0.5, x.max() + 0.5) if x.size == 1 else (x.min(), x.max())
    for name, label, style in FLOORS:
        value = found[name][metric]
        if name == "otsu" and f"{metric}_low" in found[name]:
            axes.fill_between(
                ends, found[name][f"{metric}_low"], found[name][f"{metric}_high"], color=MUTED, alpha=0.1, lw=0
            )
        axes.plot(ends, (value, value), color=MUTED, linewidth=1.2, linestyle=style, label=label)
    oracle = [row[f"oracle_{metric}"] for row in rows]
    axes.plot(x, oracle, color=ACCENTS[2], linewidth=1.4, linestyle=(0, (4, 3)), marker="o", markersize=3.5,
              label="oracle: best Dice per image, by its truth (optimistic)")  # fmt: skip
    values = [row[metric] for row in rows]
    if f"{metric}_low" in rows[0]:
        low, high = ([row[f"{metric}_{end}"] for row in rows] for end in ("low", "high"))
        axes.fill_between(x, low, high, color=ACCENTS[0], alpha=0.13, linewidth=0)
        axes.vlines(x, low, high, color=ACCENTS[0], alpha=0.35, linewidth=1.2)
    axes.plot(x, values, color=ACCENTS[0], linewidth=2.0, marker="o", markersize=4.5, label="masks")
    if metric == "dice":
        for at, value, row in zip(x, values, rows, strict=True):
            axes.annotate(f"{row['channel'] + 1}", (at, value), (0, 7), textcoords="offset points", fontsize=8,
                          color=ACCENTS[0], ha="center")  # fmt: skip
        axes.set_ylabel("small figures: the mask chosen", fontsize=8.5, color=MUTED)
    plain_axes(axes)
    axes.set_ylim(0, 1.02)


@dataclass(frozen=True)
class Example:
    """A test image, its masks `[N, H, W]`, and the choice that marks nuclei in them."""

    pair: Pair
    masks: npt.NDArray[np.float32]
    choice: Choice


def choose_examples(values: Sequence[float]) -> list[int]:
    """The images with the best, the median and the worst Dice, each once."""
    order = np.argsort(-np.asarray(values), kind="stable")
    return list(dict.fromkeys(int(order[i]) for i in (0, (len(order) - 1) // 2, -1)))


def draw_examples(examples: Sequence[Example]) -> bytes:
    """A PNG with a row per image: the image, its nuclei, the chosen mask, and the hits, false marks and misses of masks
    and of Otsu."""
    from PIL import Image

    aspect = max(e.pair.image.shape[0] / e.pair.image.shape[1] for e in examples)
    columns = ("image", "annotated nuclei", f"mask {examples[0].choice.channel + 1}", "masks", "Otsu in red")
    high = COLUMN * aspect
    width = 2 * MARGIN + len(columns) * COLUMN + (len(columns) - 1) * GAP
    canvas = Canvas(width, HEADER + len(examples) * (high + CAPTION + GAP) + MARGIN, 1.2)
    canvas.text(MARGIN, 12, "What is marked: best, median and worst test image", 18, bold=True)
    x = MARGIN
    for colour, name in ((HIT, "nucleus, marked"), (FALSE, "marked, no nucleus"), (MISSED, "nucleus, missed")):
        canvas.rect(x, 44, 14, 10, fill=colour)
        canvas.text(x + 20, 43, name, 12, MUTED)
        x += 44 + canvas.text_width(name, 12)
    for i, name in enumerate(columns):
        canvas.text(MARGIN + i * (COLUMN + GAP), HEADER - 20, name, 13, INK, bold=True)
    for row, example in enumerate(examples):
        y = HEADER + row * (high + CAPTION + GAP)
        _example(canvas, example, y, high)
    buffer = BytesIO()
    Image.fromarray(canvas.to_picture()).save(buffer, "PNG")
    return buffer.getvalue()


def _example(canvas: Canvas, example: Example, y: float, high: float) -> None:
    image, nuclei = example.pair.image, example.pair.labels > 0
    marked, otsu = example.choice.mark(example.masks), threshold_red(image)
    mask = np.repeat((255 * example.masks[example.choice.channel, :, :, None]).astype(np.uint8), 3, axis=2)
    pictures = [image, draw_outlines(image, example.pair.labels), mask]
    pictures += [draw_hits(image, own, nuclei) for own in (marked, otsu)]
    scale = min(COLUMN / image.shape[1], high / image.shape[0])
    for i, picture in enumerate(pictures):
        x = MARGIN + i * (COLUMN + GAP)
        canvas.picture(picture, x, y, image.shape[1] * scale, image.shape[0] * scale)
        words = {
            0: plain_text(example.pair.name, 30),
            3: f"Dice {dice(marked, nuclei):.2f}",
            4: f"Dice {dice(otsu, nuclei):.2f}",
        }
        if i in words:
            canvas.text(x, y + image.shape[0] * scale + 4, words[i], 11, MUTED)


def draw_outlines(image: Picture, labels: npt.NDArray[np.int64]) -> Picture:
    """The image with an outline around every nucleus, also between nuclei that touch."""
    edge = np.zeros(labels.shape, np.bool_)
    for axis in (0, 1):
        here, there = labels[:-1] if axis == 0 else labels[:, :-1], labels[1:] if axis == 0 else labels[:, 1:]
        apart = here != there
        (edge[:-1] if axis == 0 else edge[:, :-1])[apart & (here > 0)] = True
        (edge[1:] if axis == 0 else edge[:, 1:])[apart & (there > 0)] = True
    out = image.copy()
    out[edge] = _rgb(HIT)
    return out


def draw_hits(image: Picture, marked: Bools, nuclei: Bools) -> Picture:
    """The image, pale and grey, with hits, false marks and misses in colour."""
    grey = 255 - 0.5 * (255 - image.mean(axis=2, keepdims=True))
    out = np.repeat(grey, 3, axis=2)
    for where, colour in ((marked & nuclei, HIT), (marked & ~nuclei, FALSE), (~marked & nuclei, MISSED)):
        out[where] = 0.35 * out[where] + 0.65 * np.array(_rgb(colour))
    shown: Picture = np.rint(out).astype(np.uint8)
    return shown


def _rgb(colour: str) -> tuple[int, int, int]:
    r, g, b = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return r, g, b
