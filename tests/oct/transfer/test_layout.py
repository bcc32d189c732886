"""Where members go: by folders inside and outside of their archives; and what never becomes a file."""

from __future__ import annotations

import pytest

from oct.transfer.layout import Refused, Skipped, place_member

T = "structural_oct/topcon_triton"


@pytest.mark.parametrize(
    ("archive", "name", "expected"),
    [
        ("gs://b/z.zip", "retinal_oct/structural_oct/topcon_triton/1001/a.dcm", f"{T}/1001/a.dcm"),
        ("gs://b/z.zip", "topcon_triton/1001/a.DCM", f"{T}/1001/a.dcm"),
        ("gs://b/z.zip", "Topcon_Triton/1001/v1/a.dcm", f"{T}/1001/v1_a.dcm"),
        ("gs://b/z.zip", "Topcon_Triton/1001/v2/a.dcm", f"{T}/1001/v2_a.dcm"),
        ("gs://b/topcon_triton.zip", "1001/a.dcm", f"{T}/1001/a.dcm"),
        ("gs://b/retinal-oct-topcon-triton-part2.zip", "1001/a.dcm", f"{T}/1001/a.dcm"),
        ("gs://b/topcon_triton/1001.zip", "a.dcm", f"{T}/1001/a.dcm"),
        ("gs://b/topcon_triton/part1.zip", "1001/a.dcm", f"{T}/1001/a.dcm"),
        ("gs://b/topcon_triton/1001.zip", "visit1/a.dcm", f"{T}/1001/visit1_a.dcm"),
        ("gs://b/topcon_triton/1001.zip", "1001/visit2/a.dcm", f"{T}/1001/visit2_a.dcm"),
        ("gs://b/topcon_triton/1001.ZIP", "a.dcm", f"{T}/1001/a.dcm"),
        ("gs://b/topcon_triton.zip", "data/1001/a.dcm", f"{T}/1001/a.dcm"),
        ("gs://b/topcon_triton.zip", "1001_macula_l.dcm", f"{T}/1001/1001_macula_l.dcm"),
        ("gs://b/z.zip", "structural_oct/bioptigen_sdois/2001/a.dcm", "structural_oct/bioptigen_sdois/2001/a.dcm"),
        ("gs://b/structural_oct/bioptigen_sdois/2001.zip", "a.dcm", "structural_oct/bioptigen_sdois/2001/a.dcm"),
    ],
)
def test_a_member_goes_to_its_device_and_person(archive: str, name: str, expected: str) -> None:
    assert place_member(archive, name) == expected


@pytest.mark.parametrize(
    "name",
    ["../a.dcm", f"{T}/../../../a.dcm", "/etc/a.dcm", "C:/a.dcm", f"{T}\\1\\a.dcm", f"{T}//a.dcm", f"{T}/1/\0a.dcm",
     f"{T}/./a.dcm", f"{T}/1/a\n.dcm"],
)  # fmt: skip
def test_a_name_that_leads_out_is_refused(name: str) -> None:
    with pytest.raises(Refused, match="leads out"):
        place_member("gs://b/z.zip", name)


@pytest.mark.parametrize("name", ["manifest.tsv", f"{T}/1/a.json", f"__MACOSX/{T}/1/a.dcm", f"{T}/1/._a.dcm"])
def test_what_is_no_dicom_is_skipped(name: str) -> None:
    with pytest.raises(Skipped):
        place_member("gs://b/z.zip", name)


@pytest.mark.parametrize(
    ("archive", "name", "said"),
    [
        ("gs://b/z.zip", "1001/a.dcm", "names a device"),
        ("gs://b/topcon_triton.zip", "macula_left.dcm", "whose it is"),
        ("gs://b/z.zip", f"{T}/1001.zip", "an archive inside"),
        ("gs://b/topcon_triton.zip", "left/a.dcm", "none of its folders"),
    ],
)
def test_what_nothing_places_is_refused_with_the_reason(archive: str, name: str, said: str) -> None:
    with pytest.raises(Refused, match=said):
        place_member(archive, name)
