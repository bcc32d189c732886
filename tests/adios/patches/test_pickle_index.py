"""A pickle from anywhere: read where it is data, refused before it does anything where it is not."""

import os
import pickle
from pathlib import Path

import pytest

from adios.patches.pickle_index import read_pickle_index
from pathray.errors import MissingFile, UserError

ENTRIES = [("a.zip", ["patch_001_448_x1_y2.png", "é.png"]), ("sub/b.zip", [])]


class Malicious:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def write(tmp_path, data):
    path = tmp_path / "dataset_index.pkl"
    path.write_bytes(data)
    return str(path)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_an_index_of_any_pickle_protocol_is_read(tmp_path, protocol):
    assert read_pickle_index(write(tmp_path, pickle.dumps(ENTRIES, protocol))) == ENTRIES


def test_an_index_that_python_2_wrote_is_read(tmp_path):
    data = b"(lp0\n(S'a.zip'\np1\n(lp2\nS'x.png'\np3\naS'y.png'\np4\natp5\na."
    assert read_pickle_index(write(tmp_path, data)) == [("a.zip", ["x.png", "y.png"])]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_malicious_pickle_is_refused_by_name_and_nothing_runs(tmp_path, protocol):
    made = tmp_path / "made"
    path = write(tmp_path, pickle.dumps([("a.zip", [Malicious(made)])], protocol))
    with pytest.raises(UserError, match=r"posix\.mkdir") as caught:
        read_pickle_index(path)
    assert caught.value.where["file"] == path and not made.exists()
    pickle.loads(Path(path).read_bytes())
    assert made.exists()  # it would have


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (b"cos\nsystem\n(S'true'\ntR.", "os.system"),
        (b"(S'true'\nios\nsystem\n.", "os.system"),
        (b"\x80\x02\x82\x01.", "EXT1"),
        (b"Ppersistent\n.", "PERSID"),
        (b"\x80\x04}.", "EMPTY_DICT"),
        (pickle.dumps([("a.zip", [Path("b.png")])]), "pathlib"),
    ],
)
def test_an_instruction_beside_data_is_refused_by_name(tmp_path, data, named):
    with pytest.raises(UserError, match=named):
        read_pickle_index(write(tmp_path, data))


@pytest.mark.parametrize("data", [b"", b"no pickle", pickle.dumps(ENTRIES)[:-9], b"\x80\x04\x8d" + b"\xff" * 8 + b"."])
def test_a_damaged_pickle_is_the_users_error(tmp_path, data):
    with pytest.raises(UserError, match="pickled index|unsafe pickle refused"):
        read_pickle_index(write(tmp_path, data))


@pytest.mark.parametrize(
    ("value", "row"),
    [
        ("a.zip", None),
        ([("a.zip", ["x"]), "b.zip"], 1),
        ([("a.zip", ["x"], 3)], 0),
        ([("a.zip", "x.png")], 0),
        ([("a.zip", ["x", 7])], 0),
        ([(7, ["x"])], 0),
    ],
)
def test_another_structure_is_refused_with_its_entry(tmp_path, value, row):
    with pytest.raises(UserError) as caught:
        read_pickle_index(write(tmp_path, pickle.dumps(value)))
    assert caught.value.where["row"] == row


def test_a_number_in_the_pickle_allocates_nothing(tmp_path):
    data = b"\x80\x02]r\xff\xff\xff\x7f."  # an empty list, remembered under the number 2^31 - 1
    assert read_pickle_index(write(tmp_path, data)) == []


def test_a_missing_index_is_said_to_be_missing(tmp_path):
    with pytest.raises(MissingFile):
        read_pickle_index(str(tmp_path / "dataset_index.pkl"))
