import io

import numpy as np
import pytest
from PIL import Image

from mil.store.coverage import coverage_picture, write_pictures
from mil.store.places import BuildSettings
from pathray.errors import UserError
from tests.builders.bags import random_bag, write_bag
from tests.builders.mil import make_store

GREEN, RED = (46, 139, 87), (205, 70, 60)


def colours(png, size=640):
    """Tiles of a 10 x 10 grid by the colour in their middle, below the title."""
    pixels = np.asarray(Image.open(io.BytesIO(png)))
    middle = pixels[34 + 32 : 34 + 640 : 64, 32:640:64]
    return {name: int((middle == colour).all(-1).sum()) for name, colour in (("kept", GREEN), ("discarded", RED))}


def test_kept_tiles_are_green_and_discarded_ones_red(tmp_path):
    tiles = np.stack(np.meshgrid(np.arange(10), np.arange(10)), -1).reshape(-1, 2) * 512
    write_bag(tmp_path / "h5" / "a.h5", np.ones((100, 3), np.float32), tiles, of_coords={"patch_size_level0": 512})
    store = make_store(tmp_path / "store", tmp_path / "h5", BuildSettings(max_instances=37))
    assert colours(coverage_picture(store, 0)) == {"kept": 37, "discarded": 63}


def test_slides_without_positions_have_no_picture_and_the_others_have(tmp_path):
    write_bag(tmp_path / "h5" / "a.h5", np.ones((30, 8), np.float32))
    random_bag(tmp_path / "h5" / "b.h5", 30)
    store = make_store(tmp_path / "store", tmp_path / "h5", BuildSettings(max_instances=20))
    assert store.capped == [0, 1]
    assert write_pictures(store, store.capped, str(tmp_path / "qc")) == 1
    assert [path.name for path in (tmp_path / "qc").iterdir()] == ["b.png"]


def test_another_bag_than_the_stored_one_is_refused(tmp_path):
    random_bag(tmp_path / "h5" / "b.h5", 30)
    store = make_store(tmp_path / "store", tmp_path / "h5")
    random_bag(tmp_path / "h5" / "b.h5", 30, seed=5)
    with pytest.raises(UserError, match="not the one that was stored.*key: b"):
        coverage_picture(store, 0)
