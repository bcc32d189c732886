"""The spacing is what the scan's own header says, in any spelling; what no microscope gives is asked for."""

import numpy as np
import pytest
import tifffile

from ijepath.indexing.index import index_slide
from ijepath.indexing.manifest import ManifestRow
from pathray.wsi.backends.header import ANISOTROPY, check_spacing
from pathray.wsi.reader import open_slide

IMAGE = np.full((256, 256, 3), 200, np.uint8)
NS = 'xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"'


def write(path, description=None, **options):
    more = {"tile": (128, 128), "photometric": "rgb", "compression": "deflate", "metadata": None}
    tifffile.imwrite(path, IMAGE, description=description, **more, **options)
    return str(path)


def dpi(value, unit="INCH"):
    return {"resolution": (value, value), "resolutionunit": unit}


def ome(pixels, prefix="", size=256):
    p = f"{prefix}:" if prefix else ""
    ns = NS.replace("xmlns", f"xmlns:{prefix}") if prefix else NS
    body = f'<{p}Pixels SizeX="{size}" SizeY="{size}" {pixels}><{p}TiffData/></{p}Pixels>'
    image = f'<{p}Image ID="Image:0">{body}</{p}Image>'
    return f'<?xml version="1.0" encoding="UTF-8"?><{p}OME {ns}>{image}</{p}OME>'.encode()


def axes(value, unit):
    return " ".join(f'PhysicalSize{a}="{value}" PhysicalSize{a}Unit="{unit}"' for a in "XY")


@pytest.mark.parametrize("tags", [{}, dpi(300), dpi(5000, "CENTIMETER")], ids=["no tags", "300 dpi", "tags of 2 µm"])
@pytest.mark.parametrize(
    "header",
    [
        ome(axes("0.25", "µm")),
        ome(axes("0.25", "&#181;m")),
        ome(axes("0.25", "&#xB5;m")),
        ome(axes("0.25", "μm")),  # the Greek letter
        ome(axes("250", "nm")),
        ome(axes("2.5e-4", "mm")),
        ome(axes("0.25", "µm").replace('"', "'")),
        ome('PhysicalSizeX="0.25"'),
        ome('PhysicalSizeX = "0.25"\n PhysicalSizeXUnit = "µm"'),
        ome(axes("0.25", "µm"), prefix="ome"),
        ome(axes("0.25", "µm")).replace(b"<OME", b"<!-- Datei von M\xfcller --><OME"),
    ],
)
def test_ome_sizes_are_read_as_xml(tmp_path, header, tags):
    slide = open_slide(write(tmp_path / "s.ome.tif", header, **tags))
    assert (slide.mpp, slide.mpp_source) == (pytest.approx(0.25), "header")


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (ome(axes("1.0", "pixel")), "'pixel'"),
        (ome(axes("0.25", "reference frame")), "not a unit of length"),
        (ome(""), "no PhysicalSizeX"),
        (ome(axes("abc", "µm")), "'abc'"),
        (ome(axes("0.25", "µm"), size=999), "no image"),
        (ome(axes("0.25", "µm"))[:-20], "cannot be parsed"),
        (b'<!DOCTYPE OME [<!ENTITY u "0.25">]>' + ome(axes("&u;", "µm"))[38:], "document type"),
    ],
)
def test_an_ome_header_that_says_nothing_usable_is_not_replaced_by_the_tags(tmp_path, header, said):
    slide = open_slide(write(tmp_path / "s.ome.tif", header, **dpi(40000, "CENTIMETER")))
    assert slide.mpp is None and said in slide.spacing_note


@pytest.mark.parametrize(
    "name",
    ["smith", "病理".encode(), "病理".encode("shift_jis"), "張".encode("gbk"), "Müller".encode("latin-1"), b"\xff\xfe"],
)
def test_bytes_of_any_encoding_in_an_aperio_header_hide_nothing(tmp_path, name):
    raw = name if isinstance(name, bytes) else name.encode()
    text = b"Aperio Image Library v12.0.15 \r\n256x256 [0,0 256x256] (128x128) JPEG/RGB Q=70|AppMag = 40|Filename = "
    slide = open_slide(write(tmp_path / "s.svs", text + raw + b"|MPP = 0.2520"))
    assert (slide.mpp, slide.mpp_source) == (0.252, "header")


@pytest.mark.parametrize(
    ("tags", "said"),
    [
        (dpi(400_000, "CENTIMETER"), "0.025"),
        (dpi(150), "169.3"),
        (dpi(1200), "21.17"),
        (dpi(2400), "printer"),
        (dpi(4800), "printer"),
        (dpi(2400 / 2.54, "CENTIMETER"), "printer"),
        (dpi(72), "352.8"),
        ({"resolution": (40000, 38000), "resolutionunit": "CENTIMETER"}, "not square"),
    ],
)
def test_tags_that_no_microscope_writes_are_told_and_mpp_is_asked_for(tmp_path, tags, said):
    row = index_slide(ManifestRow(2, "a", write(tmp_path / "s.tif", **tags)))
    assert row["status"] == "failed" and "mpp" in row["error"] and said in row["error"]
    given = index_slide(ManifestRow(2, "a", str(tmp_path / "s.tif"), mpp=0.5))
    assert (given["status"], given["wsi_level0_spacing_mpp"]) == ("ok", 0.5)


@pytest.mark.parametrize("mpp", [0.05, 0.11, 0.1725, 0.2528, 0.5, 1.0, 2.0, 10.0, 20.0])
def test_what_microscopes_give_is_believed(mpp):
    for source in ("header", "tags"):
        assert check_spacing(mpp, mpp, source).mpp == mpp


def test_sides_of_pixels_may_differ_by_two_hundredths_and_the_mean_serves_both():
    assert check_spacing(0.25, 0.2549, "header").mpp == pytest.approx(0.25245)
    assert check_spacing(0.25, 0.25 * ANISOTROPY + 1e-6, "header").mpp is None
    assert all(
        check_spacing(*xy, "tags").mpp is None for xy in ((0, 0.5), (-1, -1), (float("nan"), 0.5), (float("inf"),) * 2)
    )


@pytest.mark.parametrize(
    ("text", "tags", "mpp", "said"),
    [
        ("AppMag = 20|MPP = 0.5", {}, None, ""),
        ("AppMag = 20|MPP = 0.5", dpi(20000, "CENTIMETER"), None, ""),
        ("AppMag = 20|MPP = 0.5", dpi(40000, "CENTIMETER"), None, "the resolution tags 0.25"),
        ("AppMag = 40|MPP = 0.5", {}, None, "at 40x"),
        ("AppMag = 20|MPP = 0.5", {}, 0.25, "the manifest says 0.25 µm per pixel, the header says 0.5"),
    ],
)
def test_sources_that_contradict_each_other_are_flagged_in_the_index(tmp_path, text, tags, mpp, said):
    head = f"Aperio Image Library v12.0.15 \r\n256x256 [0,0 256x256] (128x128) JPEG/RGB Q=70|{text}"
    row = index_slide(ManifestRow(2, "a", write(tmp_path / "s.svs", head, **tags), mpp=mpp))
    assert row["status"] == "ok" and row["wsi_level0_spacing_mpp"] == (mpp or 0.5)
    assert (said in row["spacing_note"]) if said else row["spacing_note"] == ""


def test_a_vendor_s_header_may_be_coarser_than_tags_and_is_flagged():
    found = check_spacing(28.97, 28.97, "header")
    assert found.mpp == 28.97 and "coarser" in found.note
    assert check_spacing(28.97, 28.97, "tags").mpp is None and check_spacing(120, 120, "header").mpp is None
