import imagecodecs
import numpy as np
import pytest

from pathray.wsi.backends.decode import Truncated, check_jpeg2000, check_jpeg_without_end, truncate_jpeg
from tests.builders.slides import tissue_image


def jpeg(**options):
    image = tissue_image(256, 256, seed=2)
    image[::7] //= 2  # so that neighbouring rows differ in chroma
    return imagecodecs.jpeg8_encode(image, level=85, **options)


@pytest.mark.parametrize("subsampling", ["444", "422", "420", "440"])
def test_a_shortened_jpeg_gives_exactly_the_first_rows(subsampling):
    data = jpeg(subsampling=subsampling)
    full = imagecodecs.jpeg8_decode(data)
    for rows in [*range(1, 70), 100, 127, 128, 129, 200, 211, 212, 255, 256]:
        part = imagecodecs.jpeg8_decode(truncate_jpeg(data, rows))
        assert part.shape[0] >= rows
        np.testing.assert_array_equal(part[:rows], full[:rows], str(rows))


def test_progressive_jpegs_are_decoded_whole():
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(tissue_image(128, 128)).save(file, "JPEG", progressive=True)
    assert truncate_jpeg(file.getvalue(), 10) == file.getvalue()


def test_bytes_that_are_no_jpeg_are_passed_on():
    for data in (b"", b"\xff\xd8", bytes(100), b"\xff\xd8\xff\xda\x00\x08", jpeg()[:30]):
        assert truncate_jpeg(data, 3) == data


def test_a_jpeg_that_only_lacks_its_end_marker_is_complete():
    data = jpeg()
    assert data[-2:] == b"\xff\xd9"
    check_jpeg_without_end(data[:-2], imagecodecs.jpeg8_decode)


@pytest.mark.parametrize("share", [0.999, 0.9, 0.5, 0.1])
def test_a_jpeg_cut_within_its_image_is_truncated_although_libjpeg_says_nothing(share):
    data = jpeg()
    cut = data[: int(len(data) * share)]
    imagecodecs.jpeg8_decode(cut)  # no error
    with pytest.raises(Truncated):
        check_jpeg_without_end(cut, imagecodecs.jpeg8_decode)


@pytest.mark.parametrize("codec", ["j2k", "jp2"])
def test_jpeg2000_is_complete_or_truncated_by_the_lengths_in_it(codec):
    data = imagecodecs.jpeg2k_encode(tissue_image(256, 256), level=40, codecformat=codec)
    check_jpeg2000(data)
    check_jpeg2000(data + bytes(3))
    for share in (0.99, 0.7, 0.3):
        with pytest.raises(Truncated):
            check_jpeg2000(data[: int(len(data) * share)])
