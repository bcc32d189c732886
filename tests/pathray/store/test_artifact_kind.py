"""One reader for artifacts of any kind: a kind of its own is a name, a file, keys and a function that builds."""

import json
import subprocess
import sys

import pytest
import torch
from torch import nn

from pathray.errors import MissingFile, UserError
from pathray.store.artifact_kind import WEIGHTS, ArtifactKind
from pathray.store.checkpoint import cpu_copy
from pathray.store.committed import committed_dir
from pathray.store.records import add_seal

LINE = ArtifactKind("line", "line.json", frozenset(("inputs",)), lambda found: nn.Linear(found["inputs"], 1))


@pytest.fixture
def folder(tmp_path):
    LINE.save(str(tmp_path / "line"), nn.Linear(3, 1), {"inputs": 3}, {"images_seen": 7})
    return tmp_path / "line"


def rewrite(folder, change, seal=True):
    description = {k: v for k, v in json.loads((folder / "line.json").read_text()).items() if k != "digest"} | change
    (folder / "line.json").write_text(json.dumps(add_seal(description) if seal else description))


def test_what_is_loaded_is_what_was_saved_and_does_not_train(tmp_path):
    module = nn.Linear(3, 1)
    saved = LINE.save(str(tmp_path), module, {"inputs": 3}, {"images_seen": 7})
    found, description = LINE.load(str(tmp_path))
    assert torch.equal(found.weight, module.weight) and not found.training and not found.weight.requires_grad
    assert description == saved and description["provenance"] == {"images_seen": 7}
    assert {path.name for path in tmp_path.iterdir()} == {"line.json", WEIGHTS}


def test_one_in_a_committed_directory_is_read_in_the_same_way(tmp_path):
    module = nn.Linear(3, 1)
    with committed_dir(str(tmp_path), "snapshot", {}) as directory:
        LINE.write(directory, "line", cpu_copy(module.state_dict()), {"inputs": 3}, {"images_seen": 7})
    found, description = LINE.load(f"{directory.path}/line")
    assert torch.equal(found.weight, module.weight) and description["provenance"] == {"images_seen": 7}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema_version": 2}, "newer version.*found: 2"),
        ({"inputs": 4}, "holds another model"),
        ({"inputs": "three"}, "description of a line cannot be used"),
        ({"inputs": None}, "description of a line cannot be used"),
    ],
)
def test_what_cannot_be_used_is_refused_by_its_file(folder, change, words):
    rewrite(folder, change)
    with pytest.raises(UserError, match=words) as error:
        LINE.load(str(folder))
    assert str(folder) in str(error.value)


def test_one_of_before_the_seal_is_read_and_a_renamed_seal_is_not_taken_for_one(folder):
    rewrite(folder, {}, seal=False)
    assert LINE.load(str(folder))[1]["provenance"] == {"images_seen": 7}
    rewrite(folder, {"digesu": "0"}, seal=False)
    with pytest.raises(UserError, match="description is damaged.*digesu"):
        LINE.load(str(folder))


def test_a_kind_that_was_always_sealed_is_refused_without_its_seal(folder):
    always = ArtifactKind("line", "line.json", LINE.keys, LINE.build, always_sealed=True)
    rewrite(folder, {}, seal=False)
    with pytest.raises(UserError, match="damaged line's description.*digest"):
        always.load(str(folder))


def test_weights_that_were_altered_or_lost_are_refused(folder):
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[-1] ^= 1
    (folder / WEIGHTS).write_bytes(data)
    with pytest.raises(UserError, match="the weights were altered"):
        LINE.load(str(folder))
    (folder / WEIGHTS).unlink()
    with pytest.raises(MissingFile):
        LINE.load(str(folder))


def test_a_folder_without_one_says_which_kind_is_missing(tmp_path):
    with pytest.raises(MissingFile, match=r"no line here.*a folder with line\.json"):
        LINE.load(str(tmp_path))


def test_a_description_is_read_without_importing_a_network():
    code = "import sys; from pathray.store.artifact import describe; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
