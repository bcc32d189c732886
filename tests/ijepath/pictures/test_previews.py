"""Previews show the very samples that training gets, at the right places, in files of the promised names and sizes."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ijepath.config import MaskConfig
from ijepath.data import AnchorReader
from ijepath.pictures import previews
from ijepath.pictures.panels import VEIL, colour, draw_boxes, draw_context, draw_slide, draw_targets, draw_tokens
from ijepath.pictures.sample import PreviewSample, read_sample
from pathray.data.stream import stream_batches
from pathray.draw.canvas import Canvas, blend
from pathray.errors import UnreadableUnit
from pathray.wsi.regions import read_region
from tests.builders.anchor_catalog import Built, painted_catalog


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return painted_catalog(tmp_path_factory.mktemp("previews"))


@pytest.fixture(scope="module")
def sample(built: Built) -> PreviewSample:
    config = built.config()
    return read_sample(built.lookup(config), built.reader(config), 3)


def drawn(draw, sample: PreviewSample, side: int = 512, part: int = 10**6) -> np.ndarray:
    canvas = Canvas(side, side)
    draw(canvas, sample, (0, 0, side), part)
    return canvas.to_picture().astype(float)


def test_a_preview_holds_the_arrays_of_the_training_stream(built: Built) -> None:
    config = built.config()
    lookup, reader = built.lookup(config), built.reader(config)
    rows = lookup(np.arange(4))
    batch = next(stream_batches([rows], built.reader(config), lookup))
    for position in range(4):
        sample = read_sample(lookup, reader, position)
        assert np.array_equal(sample.context, batch["context"][position])
        assert np.array_equal(sample.targets, batch["targets"][position])
        assert np.array_equal(sample.boxes, batch["boxes"][position])
        assert np.array_equal(sample.keep, batch["context_keep"][position])


def test_the_named_anchor_is_where_the_context_was_read(built: Built, sample: PreviewSample) -> None:
    reader = built.reader(built.config())
    slide = reader.handles.get(sample.slide["wsi_path"])
    geometry, mpp0 = sample.geometry, sample.slide["wsi_level0_spacing_mpp"]
    region = read_region(slide, *sample.center, geometry.context_px, geometry.context_mpp, mpp0=mpp0)
    assert np.abs(region.pixels.astype(int) - sample.context).max() <= 1
    assert sample.anchor == f"{sample.center[0]}_{sample.center[1]}"


class Stumbling(AnchorReader):
    """Finds the first two units of every odd position unreadable."""

    def read(self, unit: Mapping[str, Any], position: int, attempt: int) -> dict[str, Any]:
        if position % 2 and attempt < 2:
            raise UnreadableUnit("decode", "a damaged tile")
        return super().read(unit, position, attempt)


def test_a_replaced_anchor_is_shown_as_the_replacement_that_trained(built: Built) -> None:
    config = built.config()
    lookup, plain = built.lookup(config), built.reader(config)
    sample = read_sample(lookup, Stumbling(plain.config, plain.sources), 5)
    row = lookup.replacement(5, 2)
    assert sample.replaced == 2 and sample.center == (int(row["x"]), int(row["y"]))
    assert np.array_equal(sample.context, plain.read(row, 5, 2)["context"])
    assert not read_sample(lookup, plain, 4).replaced


def test_boxes_are_drawn_where_the_targets_were_read(sample: PreviewSample) -> None:
    picture, unit = drawn(draw_boxes, sample), 512 / sample.geometry.context_px
    for k, (x0, y0, x1, y1) in enumerate((sample.boxes * unit).round().astype(int)):
        edge = picture[(y0 + y1) // 2, x1 - 2], picture[y1 - 2, (x0 + x1) // 2]
        for pixel in edge:
            assert any(np.abs(pixel - blend(colour(j), colour(j), 0)).max() < 4 for j in range(len(sample.boxes))), k


def test_targets_stand_in_their_cells_pixel_for_pixel(sample: PreviewSample) -> None:
    side, gap, cell = 640, 16, 312
    picture = drawn(draw_targets, sample, side)
    large = Image.fromarray(sample.targets[1]).resize((cell, cell), Image.Resampling.LANCZOS)
    shown = picture[:cell, cell + gap :]
    assert np.abs(shown - np.asarray(large, float))[60:-20, 60:-20].mean() < 2, "the second, right of the first"
    assert drawn(draw_targets, sample, side, part=2)[-20, -20] == pytest.approx([227, 231, 237], abs=2), "not yet shown"


def test_hidden_tokens_are_veiled_and_kept_ones_are_not(sample: PreviewSample) -> None:
    geometry, side = sample.geometry, 8 * sample.geometry.context_px
    cell = side // geometry.grid
    before = np.asarray(Image.fromarray(sample.context).resize((side, side), Image.Resampling.BOX), float)
    after = drawn(draw_tokens, sample, side, part=2)
    hidden = np.setdiff1d(np.arange(geometry.grid**2), sample.keep)
    covered = {(r, c) for c0, r0, c1, r1 in sample.spans.tolist() for r in range(r0, r1) for c in range(c0, c1)}
    assert covered <= {divmod(int(t), geometry.grid) for t in hidden}, "no kept token lies in any R"
    assert sample.hidden_tokens == len(covered)

    def middle(picture: np.ndarray, token: int) -> np.ndarray:
        row, column = divmod(int(token), geometry.grid)
        inner = slice(row * cell + cell // 3, row * cell + 2 * cell // 3)
        return picture[inner, column * cell + cell // 3 : column * cell + 2 * cell // 3].mean((0, 1))

    border = {(r, c) for r, c in covered for r, c in ((r - 1, c), (r + 1, c), (r, c - 1), (r, c + 1))}
    plain = [t for t in sample.keep if divmod(int(t), geometry.grid) not in border | {(geometry.grid - 1, 0)}]
    plain = [t for t in plain if divmod(int(t), geometry.grid)[0] < geometry.grid - 2]  # above the scale bar's plate
    assert max(np.abs(middle(after, t) - middle(before, t)).max() for t in plain) < 6
    free = [t for t in hidden if divmod(int(t), geometry.grid) not in covered]
    for token in free:
        assert middle(after, token) == pytest.approx(0.24 * middle(before, token) + 0.76 * np.array(VEIL), abs=6)


def test_targets_outside_of_the_context_stay_inside_the_panel(built: Built) -> None:
    config = built.config()
    config = replace(config, mask=MaskConfig(outside_targets=1, outside_ring_um=8.0))
    sample = read_sample(built.lookup(config), built.reader(config), 0)
    geometry = sample.geometry
    last = sample.boxes[-1]
    assert last.min() < 0 or last.max() > geometry.context_px
    canvas = Canvas(700, 700)
    draw_boxes(canvas, sample, (100, 100, 500))
    picture = canvas.to_picture()
    assert (picture[:99] == 255).all() and (picture[601:] == 255).all()
    assert (picture[:, :99] == 255).all() and (picture[:, 601:] == 255).all()
    side = 500 * geometry.grid / geometry.predictor_grid
    unit, corner = side / geometry.context_px, 100 + (500 - side) / 2
    edge = picture[round(corner + last[[1, 3]].mean() * unit), round(corner + last[2] * unit) - 2]
    assert np.abs(edge.astype(int) - blend(colour(3), colour(3), 0)).max() < 4
    assert sample.hidden_tokens <= 3 * 9


def test_what_the_mask_leaves_out_is_greyed(sample: PreviewSample) -> None:
    half = np.ones_like(sample.tissue)
    half[:, : half.shape[1] // 2] = 0
    plain = drawn(draw_context, replace(sample, tissue=np.ones_like(half)))
    veiled = drawn(draw_context, replace(sample, tissue=half))
    assert np.abs(plain - veiled)[20:400, 280:500].max() == 0
    assert (np.abs(plain - veiled)[20:400, 20:230].sum(-1) > 0).mean() > 0.9


def test_the_anchor_frame_stands_around_the_context_on_the_slide(sample: PreviewSample) -> None:
    picture = drawn(draw_slide, sample, 600)
    unit = 600 / max(sample.slide_size)
    x = round((sample.place.left + sample.place.side / 2) * unit + (600 - sample.slide_size[0] * unit) / 2)
    y = round(sample.place.top * unit + (600 - sample.slide_size[1] * unit) / 2)
    red = np.abs(picture[max(0, y - 3) : y + 4, x] - (208, 0, 0)).max(-1)
    assert red.min() < 30


def test_files_have_the_promised_names_sizes_and_frames(sample: PreviewSample) -> None:
    files = dict(previews.preview_files(7, sample, final_png_scale=1.5, zoom=True))
    name = f"s007_{sample.slide_id}_{sample.anchor}"
    assert sorted(files) == sorted(
        [f"preview_{name}.png", f"ijepa_{name}.gif", f"ijepa_{name}_all_steps.png", f"zoom4_{name}.png"]
    )
    sizes = {key: Image.open(io.BytesIO(content)).size for key, content in files.items()}
    assert sizes[f"preview_{name}.png"] == (1600, 900)
    assert sizes[f"ijepa_{name}_all_steps.png"] == (2400, 1350)
    gif = Image.open(io.BytesIO(files[f"ijepa_{name}.gif"]))
    targets = len(sample.boxes)
    assert gif.n_frames == 1 + 1 + targets + targets + 3 + 3 and gif.info["loop"] == 0


def test_the_reveal_ends_with_the_whole_flow_and_only_adds(sample: PreviewSample) -> None:
    frames = list(previews.reveal(sample, scale=0.4))
    assert np.array_equal(frames[-1][0], previews.draw_flow(sample, 0.4))
    changed = [np.abs(a[0].astype(int) - b[0]).max(-1) > 0 for a, b in zip(frames, frames[1:], strict=False)]
    assert all(c.any() for c in changed), "every frame shows something new"
    assert frames[-1][1] > frames[0][1] >= 400


def test_a_gif_keeps_paper_and_thin_frames_in_their_own_colours(sample: PreviewSample) -> None:
    frames = list(previews.reveal(sample, scale=0.8))
    gif = Image.open(io.BytesIO(previews.gif_bytes(frames)))
    gif.seek(gif.n_frames - 1)
    shown, drawn_ = np.asarray(gif.convert("RGB")).astype(int), frames[-1][0]
    for exact in ((255, 255, 255), (208, 0, 0), blend(colour(0), colour(0), 0)):
        where = (drawn_ == exact).all(-1)
        assert where.sum() > 100 and (shown[where] == exact).all(-1).mean() > 0.98, exact
    assert np.abs(shown - drawn_).mean() < 3


def test_slide_ids_become_safe_file_names(sample: PreviewSample, tmp_path: Path) -> None:
    odd = replace(sample, slide={**sample.slide, "slide_id": "a/b c:1"})
    name = previews.stem(0, odd)
    assert name == f"s000_a-b-c-1_{sample.anchor}" and "/" not in name
