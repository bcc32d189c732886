"""Which backend serves what, and what is said where none does."""

import os
import sys

import numpy as np
import pytest
import tifffile

from pathray.errors import MissingFile, UnreadableUnit, UserError
from pathray.wsi import reader
from pathray.wsi.backends import libraries
from pathray.wsi.reader import open_slide
from tests.builders.dicom_slides import write_dicom_slide
from tests.builders.slides import REAL, tissue_image, write_slide


def test_a_missing_slide_is_a_missing_file_also_by_url(tmp_path):
    for path in (str(tmp_path / "no.svs"), f"file://{tmp_path}/no.svs", "memory://nothing/no.svs"):
        with pytest.raises(MissingFile) as e:
            open_slide(path)
        assert "no.svs" in str(e.value)


@pytest.mark.parametrize("name", ["a.sdpc", "b.KFB", "c.tmap", "d.tron"])
def test_formats_that_nobody_reads_are_named_with_what_to_do(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"SQ\x00\x01")
    with pytest.raises(UserError) as e:
        open_slide(str(path))
    suffix = path.suffix.lower()
    assert suffix[1:].upper() in str(e.value) and suffix in str(e.value) and "convert" in str(e.value)


def test_a_file_that_is_no_slide_names_what_every_backend_said(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("not a slide")
    with pytest.raises(UserError) as e:
        open_slide(str(path))
    for said in ("tiff: not a TIFF", "openslide:", "fastslide:", "tiffslide:"):
        assert said in str(e.value)


def test_an_unknown_backend_is_refused(tmp_path):
    with pytest.raises(UserError, match="backend"):
        open_slide(str(tmp_path / "x.svs"), backend="cucim")


def test_a_folder_without_a_slide_says_what_it_holds(tmp_path):
    (tmp_path / "readme.md").write_text("hello")
    with pytest.raises(UserError, match=r"readme\.md"):
        open_slide(str(tmp_path))


def test_an_mrxs_folder_leads_to_the_file_beside_it(tmp_path):
    from pathray.wsi.backends.formats import slide_file_of

    (tmp_path / "case7").mkdir()
    (tmp_path / "case7" / "Slidedat.ini").write_text("")
    (tmp_path / "case7.mrxs").write_bytes(b"\xff\xd8")
    assert slide_file_of(str(tmp_path / "case7")) == str(tmp_path / "case7.mrxs")
    assert slide_file_of(str(tmp_path / "case7") + "/") == str(tmp_path / "case7.mrxs")
    assert slide_file_of(str(tmp_path)) == str(tmp_path / "case7.mrxs")


def test_a_dicom_folder_leads_to_an_instance(tmp_path):
    from pathray.wsi.backends.formats import slide_file_of

    for name in ("b.dcm", "a.dcm"):
        (tmp_path / name).write_bytes(b"")
    assert slide_file_of(str(tmp_path)) == str(tmp_path / "a.dcm")


@pytest.mark.parametrize("backend", ["auto", "openslide", "fastslide"])
def test_a_dicom_slide_is_read_by_its_folder_or_an_instance(tmp_path, backend):
    pytest.importorskip("openslide" if backend == "auto" else backend)
    image = tissue_image(600, 500)
    folder = write_dicom_slide(tmp_path / "study", image, mpp=0.25)
    for path in (folder, folder / "level-1.dcm"):
        slide = open_slide(str(path), backend=backend)
        assert slide.backend == ("openslide" if backend == "auto" else backend)
        assert slide.level_shapes == ((600, 500), (300, 250), (150, 125))
        assert slide.mpp == pytest.approx(0.25) and slide.mpp_source == "header"
        error = np.abs(slide.read_level(0, 100, 90, 300, 280).astype(int) - image[90:370, 100:400])
        assert error.mean() < 4
        assert (slide.read_level(0, -50, 0, 60, 60)[:, :50] == 255).all()


def test_sixteen_bit_slides_are_refused_though_openslide_opens_them(tmp_path):
    path, image = tmp_path / "deep.tif", tissue_image(300, 300)
    tifffile.imwrite(path, image.astype(np.uint16) * 257, tile=(128, 128), photometric="rgb")
    with pytest.raises(UserError) as e:
        open_slide(str(path))
    assert "16 bits per sample" in str(e.value)


def test_channels_in_pages_of_their_own_are_not_taken_for_a_grey_slide(tmp_path, monkeypatch):
    path, channels = tmp_path / "fluorescence.tif", np.zeros((3, 300, 300), np.uint8)
    tifffile.imwrite(path, channels, tile=(128, 128), photometric="minisblack", metadata=None)
    monkeypatch.setattr(reader, "is_installed", lambda name: False)
    with pytest.raises(UserError, match="channels or focal planes"):
        open_slide(str(path))


def test_trestle_slides_are_left_to_libraries_since_their_tiles_overlap(tmp_path, monkeypatch):
    path = tmp_path / "trestle.tif"
    tifffile.imwrite(
        path, tissue_image(300, 300), tile=(128, 128), photometric="rgb", software="MedScan 3", metadata=None
    )
    monkeypatch.setattr(reader, "is_installed", lambda name: False)
    with pytest.raises(UserError, match="overlap"):
        open_slide(str(path))


def test_a_tiff_with_an_alpha_channel_goes_to_a_library_and_is_laid_on_white(tmp_path):
    image = tissue_image(300, 300)
    rgba = np.concatenate([image, np.full((300, 300, 1), 255, np.uint8)], axis=2)
    path = tmp_path / "rgba.tif"
    tifffile.imwrite(path, rgba, tile=(128, 128), photometric="rgb", extrasamples=["unassalpha"], compression="deflate")
    slide = open_slide(str(path))
    assert slide.backend != "tiff"
    np.testing.assert_array_equal(slide.read_level(0, 20, 30, 200, 100), image[30:130, 20:220])


@pytest.mark.parametrize("backend", ["openslide", "tiffslide", "fastslide"])
def test_every_library_reads_the_same_slide_behind_the_same_protocol(tmp_path, backend):
    pytest.importorskip(backend)
    image = tissue_image(600, 500)
    path = write_slide(tmp_path / "s.svs", kind="svs", codec="deflate", image=image, downsamples=(1, 2), mpp=0.25)
    ours, theirs = open_slide(str(path)), open_slide(str(path), backend=backend)
    assert theirs.backend == backend and theirs.level_shapes == ours.level_shapes
    assert theirs.mpp == pytest.approx(0.25) and theirs.mpp_source == "header"
    for level, box in [
        (0, (17, 33, 200, 150)),
        (0, (-20, -10, 90, 80)),
        (0, (550, 460, 100, 90)),
        (1, (30, 21, 99, 80)),
    ]:
        np.testing.assert_array_equal(theirs.read_level(level, *box), ours.read_level(level, *box), str((level, box)))
    np.testing.assert_array_equal(theirs.read_level(0, 700, 10, 20, 30), np.full((30, 20, 3), 255, np.uint8))


def test_openslide_recovers_after_a_damaged_tile(tmp_path):
    pytest.importorskip("openslide")
    from tests.builders.slides import garble_tile

    path = write_slide(tmp_path / "s.svs", kind="svs", width=600, height=500)
    expected = open_slide(str(path), backend="openslide").read_level(0, 0, 0, 100, 100)
    garble_tile(path, 0, 4)
    slide = open_slide(str(path), backend="openslide")
    with pytest.raises(UnreadableUnit, match="decode"):
        slide.read_level(0, 300, 300, 100, 100)
    np.testing.assert_array_equal(slide.read_level(0, 0, 0, 100, 100), expected)


@pytest.mark.parametrize("backend", ["openslide", "tiffslide", "tiff"])
def test_a_handle_opened_before_a_fork_reads_right_in_parent_and_child(tmp_path, backend):
    if backend != "tiff":
        pytest.importorskip(backend)
    path = write_slide(tmp_path / "s.svs", kind="svs", codec="deflate", width=900, height=800)
    slide = open_slide(str(path), backend=backend)
    boxes = [(x, y, 200, 200) for x in (0, 150, 500) for y in (0, 300, 500)]
    expected = [slide.read_level(0, *box) for box in boxes]
    child = os.fork()
    good = all(
        np.array_equal(slide.read_level(0, *b), e) for _ in range(3) for b, e in zip(boxes, expected, strict=True)
    )
    if child == 0:
        os._exit(0 if good else 1)
    assert good
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_fastslide_says_so_instead_of_hanging_in_a_forked_child(tmp_path):
    pytest.importorskip("fastslide")
    slide = open_slide(str(write_slide(tmp_path / "s.svs", kind="svs")), backend="fastslide")
    slide.read_level(0, 0, 0, 99, 99)
    child = os.fork()
    if child == 0:
        try:
            slide.read_level(0, 0, 0, 99, 99)
        except UserError:
            os._exit(0)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_without_the_extras_tiffslide_still_stands_behind_the_direct_path(tmp_path, monkeypatch):
    monkeypatch.setattr(reader, "is_installed", lambda name: name == "tiffslide")
    rgba = np.full((300, 300, 4), 255, np.uint8)
    tifffile.imwrite(tmp_path / "rgba.tif", rgba, tile=(128, 128), photometric="rgb", extrasamples=["unassalpha"])
    assert open_slide(str(tmp_path / "rgba.tif")).backend == "tiffslide"
    (tmp_path / "x.czi").write_bytes(b"ZISRAWFILE")
    with pytest.raises(UserError) as e:
        open_slide(str(tmp_path / "x.czi"))
    assert "openslide: not installed" in str(e.value) and "pip install" in str(e.value)


def test_importing_the_reader_imports_no_library():
    import subprocess

    code = "import sys, pathray.wsi.regions, pathray.wsi.handles, pathray.wsi.tissue; "
    code += "names = 'torch ray openslide fastslide tiffslide tifffile PIL'.split(); "
    code += "print([name for name in names if name in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_libraries_are_tried_in_a_fixed_order():
    assert [library.name for library in libraries.LIBRARIES] == ["openslide", "fastslide", "tiffslide"]


def test_implausible_resolution_tags_are_no_spacing(tmp_path):
    for resolution, unit in [((72, 72), "INCH"), ((1, 1), "NONE"), ((20000, 9000), "CENTIMETER")]:
        path = tmp_path / "s.tif"
        tifffile.imwrite(path, tissue_image(200, 200), tile=(64, 64), resolution=resolution, resolutionunit=unit)
        assert open_slide(str(path)).mpp is None
    tifffile.imwrite(path, tissue_image(200, 200), tile=(64, 64), resolution=(50800, 50800), resolutionunit="INCH")
    assert open_slide(str(path)).mpp == pytest.approx(0.5)


def test_label_and_macro_are_not_levels():
    path = REAL / "CMU-1-Small-Region.svs"
    if not path.is_file():
        pytest.skip(f"no real slide at {path}")
    assert open_slide(str(path)).level_shapes == ((2220, 2967),)


def test_a_folder_of_several_dicom_series_is_refused_with_their_names(tmp_path):
    import pydicom

    folder = write_dicom_slide(tmp_path / "flat", tissue_image(300, 200), mpp=0.5, downsamples=(1,))
    other = pydicom.dcmread(folder / "level-0.dcm")
    other.SeriesInstanceUID = "1.2.826.0.1.3680043.8.498.99"
    other.save_as(folder / "other.dcm")
    with pytest.raises(UserError, match="several DICOM series") as e:
        open_slide(str(folder))
    assert "level-0.dcm" in str(e.value) and "other.dcm of 1.2.826.0.1.3680043.8.498.99" in str(e.value)
