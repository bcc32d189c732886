"""AI-READI's manifest and folders without one: what is read, where paths begin, and each fault with its row."""

import pytest

from oct.indexing.manifest import of_devices, read_folder, read_manifest
from pathray.errors import MissingFile, UserError
from tests.builders.oct.scans import Scan, cells_of, write_rows, write_scans


def manifest_with(tmp_path, *changes, **cells):
    """A manifest of two rows, the second one changed."""
    row = cells_of(Scan("1002")) | cells
    for name in changes:
        del row[name]
    first = {name: cell for name, cell in cells_of(Scan("1001")).items() if name in row}
    return write_rows(tmp_path / "manifest.tsv", [first, row])


@pytest.mark.parametrize("name", ["manifest.tsv", "manifest_participant_id_variant.tsv"])
def test_both_variants_of_the_real_manifest_give_the_same_rows(shared_data, name):
    """Counted by hand in the file: 16 rows; 12 say a pixel spacing of which 1002 and 1003 are circles."""
    manifest = read_manifest(str(shared_data / "oct/retinal_oct" / name))
    assert manifest.root == str(shared_data / "oct")
    by_person = {row.person: row for row in manifest.rows}
    assert list(by_person)[:3] == ["2001", "2002", "2003"] and len(manifest.rows) == 16
    first, cirrus, line = by_person["2001"], by_person["3001"], by_person["1001"]
    assert (first.line, first.laterality, first.frames, first.height, first.width) == (2, "L", 5, 450, 900)
    assert first.spacing_mm == (0.067, 0.00323, 0.0067)  # z, y, x: [rows, columns] is (y, x)
    assert cirrus.region == "Macula, 6 x 6" and cirrus.spacing_mm == (0.046875, 0.00195312, 0.0117188)
    assert line.spacing_mm == (None, None, None)  # "Varies by frame"
    assert by_person["2008"].spacing_mm == (None, None, None)  # "Not reported"
    assert sum(row.spacing_mm[1] is not None for row in manifest.rows) == 11
    assert {row.device for row in manifest.rows} == {"bioptigen_sdois", "zeiss_cirrus", "heidelberg_spectralis"}
    assert all((shared_data / "oct" / row.path).is_file() for row in manifest.rows)


def test_a_path_that_begins_with_a_slash_is_below_the_root(tmp_path):
    manifest = read_manifest(
        manifest_with(tmp_path, filepath="/structural_oct/topcon_triton/1002/a.dcm"), "memory://b/oct"
    )
    assert (manifest.root, manifest.rows[1].path) == ("memory://b/oct", "structural_oct/topcon_triton/1002/a.dcm")


def test_a_root_that_is_one_folder_too_deep_is_refused(tmp_path):
    path = write_scans(tmp_path, [Scan("1")])
    with pytest.raises(UserError, match="begin above this root") as error:
        read_manifest(path, f"{tmp_path}/structural_oct")
    assert str(error.value.where["expected"]).startswith(f"{tmp_path},")
    assert read_manifest(path, str(tmp_path)).root == str(tmp_path)


def test_a_root_with_a_signature_is_refused(tmp_path):
    with pytest.raises(UserError, match="signature") as error:
        read_manifest(manifest_with(tmp_path), "https://host/oct?sig=abc")
    assert "abc" not in str(error.value)


def test_the_prefix_dataset_of_some_copies_is_dropped_unless_there_is_such_a_folder(tmp_path):
    path = manifest_with(tmp_path, filepath="/dataset/structural_oct/topcon_triton/1002/a.dcm")
    assert read_manifest(path).rows[1].path == "structural_oct/topcon_triton/1002/a.dcm"
    (tmp_path / "dataset").mkdir()
    assert read_manifest(path).rows[1].path == "dataset/structural_oct/topcon_triton/1002/a.dcm"


@pytest.mark.parametrize(
    ("column", "cell", "words"),
    [
        ("pixel_spacing", "[0.0039]", "not a pixel spacing"),
        ("pixel_spacing", "[0.0039, 0]", "not a pixel spacing"),
        ("pixel_spacing", "0,0039", "not a pixel spacing"),
        ("slice_thickness", "-0.1", "not a length"),
        ("laterality", "X", "not an eye"),
        ("height", "450.5", "not a count"),
        ("number_of_frames", "0", "not a count"),
        ("filepath", "/../a.dcm", "not a path of the data set"),
        ("filepath", "", "not a path of the data set"),
        ("filepath", "gs://b/a.dcm", "not a path of the data set"),
        ("filepath", "\\oct\\a.dcm", "not a path of the data set"),
        ("person_id", "", "an empty cell"),
    ],
)
def test_a_cell_that_is_not_valid_is_named_with_its_row(tmp_path, column, cell, words):
    path = manifest_with(tmp_path, **{column: cell})
    with pytest.raises(UserError, match=words) as error:
        read_manifest(path)
    where = error.value.where
    assert (where["file"], where["row"], where["key"]) == (path, 3, column)
    assert where["found"] == (cell or "an empty cell") and where["expected"]


@pytest.mark.parametrize("column", ["filepath", "pixel_spacing", "sop_instance_uid", "person_id"])
def test_a_missing_column_is_named(tmp_path, column):
    path = manifest_with(tmp_path, column)
    with pytest.raises(UserError) as error:
        read_manifest(path)
    assert (error.value.where["file"], error.value.where["key"]) == (path, column)


def test_two_columns_of_persons_are_refused(tmp_path):
    with pytest.raises(UserError, match="one column must name the person") as error:
        read_manifest(manifest_with(tmp_path, participant_id="7"))
    assert error.value.where["found"] == ["person_id", "participant_id"]


def test_two_spellings_of_a_person_are_refused(tmp_path):
    rows = [cells_of(Scan("ab1")), cells_of(Scan("AB1"))]
    with pytest.raises(UserError, match="differ only in case") as error:
        read_manifest(write_rows(tmp_path / "manifest.tsv", rows))
    assert error.value.where["row"] == 3 and "row 2 has ab1" in str(error.value)


@pytest.mark.parametrize(("cell", "eye"), [("OD", "R"), ("left", "L"), ("Not reported", ""), ("", ""), ("B", "")])
def test_an_eye_that_is_not_said_stays_open(tmp_path, cell, eye):
    assert read_manifest(manifest_with(tmp_path, laterality=cell)).rows[1].laterality == eye


def test_a_folder_without_a_manifest_has_a_row_per_file_whose_folder_is_the_person(tmp_path):
    write_scans(tmp_path, [Scan("7", "L"), Scan("7", "R"), Scan("8", device="zeiss_cirrus")])
    (tmp_path / "structural_oct/zeiss_cirrus/8/B.DCM").write_text("{}")
    (tmp_path / "structural_oct/zeiss_cirrus/8/.half.dcm").write_text("{}")
    rows = read_folder(str(tmp_path)).rows
    assert [(row.line, row.person, row.device, row.path.rpartition("/")[2]) for row in rows] == [
        (1, "7", "topcon_triton", "7_l_macula.dcm"),
        (2, "7", "topcon_triton", "7_r_macula.dcm"),
        (3, "8", "zeiss_cirrus", "8_r_macula.dcm"),
        (4, "8", "zeiss_cirrus", "B.DCM"),
    ]


def test_a_folder_without_dicom_files_or_persons_is_refused(tmp_path):
    with pytest.raises(MissingFile):
        read_folder(str(tmp_path / "gone"))
    with pytest.raises(UserError, match="no DICOM files"):
        read_folder(str(tmp_path))
    (tmp_path / "a.dcm").write_text("")
    with pytest.raises(UserError, match="no person's folder"):
        read_folder(str(tmp_path))


def test_a_device_that_is_not_there_is_refused_with_those_that_are(tmp_path):
    manifest = read_manifest(write_scans(tmp_path, [Scan("1"), Scan("2", device="zeiss_cirrus")]))
    assert [row.person for row in of_devices(manifest, ["zeiss_cirrus"]).rows] == ["2"]
    with pytest.raises(UserError, match="no volume of this device") as error:
        of_devices(manifest, ["zeiss_cirus"])
    assert error.value.where["expected"] == ["topcon_triton", "zeiss_cirrus"]
