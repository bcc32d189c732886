"""Pictures of masks show what was masked, and leave no trace in the training beside them."""

from __future__ import annotations

import io
import random
import signal

import numpy as np
import pytest
import torch
from PIL import Image

from adios.visualise import FRAMES, cells, draw_masks, write_film, write_masks
from pathray.errors import MissingFile, UserError
from pathray.store.storage import Storage


def patches(count: int = 2, masks: int = 3, side: int = 32):
    g = np.random.default_rng(0)
    images = g.integers(0, 255, (count, side, side, 3)).astype(np.uint8)
    logits = g.normal(size=(count, masks, side, side)) * 3
    soft = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return images, soft.astype(np.float32)


def test_a_row_shows_the_patch_its_masks_and_what_is_left_of_it():
    image = np.full((4, 4, 3), 100, np.uint8)
    masks = np.zeros((2, 4, 4), np.float32)
    masks[0, :, :2], masks[1, :, 2:] = 1, 1
    patch, first, second, overlay, without_first, without_second = cells(image, masks, [0.2, 0.4, 0.8])
    assert np.array_equal(patch, image) and first[0, 0].tolist() == [255] * 3 and first[0, 3].tolist() == [0] * 3
    assert np.array_equal(second, first[:, ::-1])
    assert overlay[0, 0].tolist() != overlay[0, 3].tolist(), "each mask has a colour of its own"
    assert without_first[0, 0].tolist() == [51, 102, 204], "a mask paints the mean colour, as for the student"
    assert without_first[0, 3].tolist() == [100] * 3 and np.array_equal(without_second, without_first[:, ::-1])


def test_a_grid_has_a_row_per_patch_and_a_column_per_picture():
    two, three = (draw_masks(*patches(2, n), "title") for n in (2, 3))
    four = draw_masks(*patches(4, 2), "title")
    assert three.shape[1] - two.shape[1] == 1.5 * 2 * 118 and four.shape[0] - two.shape[0] == 1.5 * 2 * 118


def test_drawing_touches_no_global_generator_and_no_signal(tmp_path):
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)]
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    path = write_masks(str(tmp_path), 500, *patches())
    write_film(str(tmp_path))
    assert random.getstate() == before[0] and torch.equal(torch.get_rng_state(), before[2])
    assert all(np.array_equal(a, b) for a, b in zip(np.random.get_state(), before[1], strict=True))
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)] == handlers
    assert path.endswith("iter_00000500.png") and Image.open(path).size[0] > 8 * 100


@pytest.mark.parametrize("remote", [False, True])
def test_a_film_shows_the_training_from_its_first_to_its_last_picture(tmp_path, remote):
    folder = f"memory://{tmp_path.name}" if remote else str(tmp_path)
    with pytest.raises(MissingFile, match="no pictures of masks"):
        write_film(folder)
    images, _ = patches(1)
    for step in (0, 1000, 90_000_000, 100_000_000):
        masks = np.zeros((1, 2, 32, 32), np.float32)
        masks[:, int(step < 100_000_000)] = 1
        write_masks(folder, step, images, masks)
    store = Storage.of(folder)
    store.write_bytes("iter_x.png", b"somebody's own")
    write_film(folder)
    gif = Image.open(io.BytesIO(store.read_bytes("masks.gif")))
    assert gif.n_frames == 4 and gif.info["loop"] == 0 and max(gif.size) <= 800
    shown = []
    for i in range(4):
        gif.seek(i)
        shown.append(np.asarray(gif.convert("RGB")).astype(int)[110:180, 140:210].mean())
    assert max(shown[:3]) < 50 and shown[3] > 200, "in the order of iterations, whatever their digits"
    assert FRAMES == 40


def test_a_film_that_is_told_where_to_stand_leaves_the_pictures_folder_alone(tmp_path):
    write_masks(str(tmp_path / "run"), 0, *patches())
    path = str(tmp_path / "other" / "film.gif")
    assert write_film(str(tmp_path / "run"), path) == path and Image.open(path).format == "GIF"
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["iter_00000000.png"]


def test_a_damaged_picture_is_named(tmp_path):
    write_masks(str(tmp_path), 0, *patches())
    (tmp_path / "iter_00000001.png").write_bytes((tmp_path / "iter_00000000.png").read_bytes()[:200])
    with pytest.raises(UserError, match="iter_00000001.png"):
        write_film(str(tmp_path))
    assert not (tmp_path / "masks.gif").exists()
