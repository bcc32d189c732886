"""Single-domain and multi-domain lists: filters, and what is said of values that nothing has."""

import pytest

from oct.indexing.file_lists import list_files, read_file_list, write_file_list
from pathray.errors import MissingFile, UserError
from tests.builders.oct.scans import Scan, both_eyes, index_scans


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    scans = [
        *both_eyes("1"),
        *both_eyes("2", device="zeiss_cirrus", region="Macula, 6 x 6"),
        Scan("3", region="Optic Disc", size=(4, 16, 24)),
        Scan("4", exclusion="single_frame"),
        Scan("5", header_eye="", eye="", device="bioptigen_sdois"),
    ]
    return index_scans(tmp_path_factory.mktemp("oct"), scans)


@pytest.mark.parametrize(
    ("filters", "persons"),
    [
        ({}, "1 1 2 2 3 5"),
        ({"devices": ["topcon_triton"]}, "1 1 3"),  # single-domain
        ({"devices": ["topcon_triton", "zeiss_cirrus"]}, "1 1 2 2 3"),  # multi-domain
        ({"regions": ["macula"]}, "1 1 2 2 5"),
        ({"regions": ["Macula, 6 x 6"]}, "2 2"),
        ({"lateralities": ["L"]}, "1 2"),
        ({"lateralities": [""]}, "5"),
        ({"min_frames": 4, "devices": ["topcon_triton"]}, "1 1 3"),
        ({"min_frames": 5, "devices": ["topcon_triton"]}, "1 1"),
    ],
)
def test_filters_choose_accepted_volumes_in_the_order_of_the_index(index, filters, persons):
    files = list_files(index, **filters)
    assert " ".join(files.groups.tolist()) == persons
    assert len(files.names) == len(files.strata) == len(files.lines)


def test_strata_are_device_region_and_eye(index):
    assert list_files(index).strata.tolist()[2:4] == [
        "zeiss_cirrus | Macula, 6 x 6 | R",
        "zeiss_cirrus | Macula, 6 x 6 | L",
    ]


def test_a_value_that_no_volume_has_is_refused_with_those_there_are(index):
    with pytest.raises(UserError, match="no volume has this value") as error:
        list_files(index, devices=["topcon_triton", "zeis_cirrus"])
    assert error.value.where["found"] == ["zeis_cirrus"]
    assert error.value.where["expected"] == "of ['bioptigen_sdois', 'topcon_triton', 'zeiss_cirrus'], or [] for all"


def test_filters_that_nothing_passes_together_say_what_there_is(index):
    with pytest.raises(UserError, match="no volume passes the filters") as error:
        list_files(index, devices=["zeiss_cirrus"], regions=["Optic Disc"])
    assert error.value.where["expected"] == "1 bioptigen_sdois, 3 topcon_triton, 2 zeiss_cirrus"


def test_a_file_list_reads_back_and_refuses_a_path_twice(tmp_path, index):
    path, names = str(tmp_path / "list.txt"), list_files(index).names.tolist()
    write_file_list(path, names)
    assert read_file_list(path) == names
    (tmp_path / "list.txt").write_text("# mine\n\n/a/b.dcm\nc.dcm\na/b.dcm\n")
    with pytest.raises(UserError, match="twice") as error:
        read_file_list(path)
    assert (error.value.where["row"], error.value.where["found"]) == (5, "a/b.dcm")
    (tmp_path / "list.txt").write_text("# none\n")
    with pytest.raises(UserError, match="empty"):
        read_file_list(path)
    with pytest.raises(MissingFile):
        read_file_list(str(tmp_path / "gone.txt"))
