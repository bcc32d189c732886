"""Coarse regions of a flat slide in bounded memory; a library that fills gaps is kept from files with gaps."""

import numpy as np
import pytest

from pathray.errors import UserError
from pathray.wsi import regions
from pathray.wsi.reader import open_slide
from tests.builders.slides import write_slide


def test_many_coarse_regions_are_resized_as_they_are_read():
    class Flat:
        path, backend, mpp, mpp_source = "flat", "fake", 0.25, "tags"
        level_shapes, level_downsamples, most = ((100_000, 100_000),), (1.0,), 0

        def read_boxes(self, level, boxes):
            self.most = max(self.most, sum(w * h for _, _, w, h in boxes))
            return [np.full((h, w, 3), x % 251, np.uint8) for x, _, w, h in boxes]

        def read_level(self, level, x, y, width, height):
            return self.read_boxes(level, [(x, y, width, height)])[0]

        def close(self):
            pass

    flat, centres = Flat(), [(5000 + 2000 * i, 5000) for i in range(24)]
    got = regions.read_regions(flat, centres, 128, 4.0, mpp0=0.25)
    assert flat.most * 3 <= 64 << 20
    assert [int(region.pixels[0, 0, 0]) for region in got] == [(x - 1024) % 251 for x, _ in centres]


@pytest.mark.parametrize("codec", ["jp2k", "jp2k_33003", "jp2k_33005"])
def test_a_library_that_fills_missing_jpeg_2000_tiles_is_not_used_for_them(tmp_path, codec):
    pytest.importorskip("fastslide")
    path = write_slide(tmp_path / "s.svs", kind="svs", codec=codec)
    with pytest.raises(UserError, match="blank tiles"):
        open_slide(str(path), backend="fastslide")
    assert open_slide(str(path)).backend == "tiff"
