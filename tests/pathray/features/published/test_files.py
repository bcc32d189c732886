"""What is read as weights, and what is refused: by file, parameter, shape found and shape expected."""

import hashlib
import json
import pickle

import pytest
import torch
from safetensors.torch import save_file

from pathray.errors import MissingFile, UserError
from pathray.features.published.importing import Given, read_encoder
from pathray.store.artifact import describe
from tests.builders.published import random_weights, shrink, tiny_row


@pytest.fixture(autouse=True)
def small(monkeypatch):
    shrink(monkeypatch)


def uni(seed=0):
    return random_weights(tiny_row("uni"), seed)


def read(path, **given):
    return read_encoder(str(path), Given(**{"model": "uni", **given}))


def same(a, b):
    one, two = a.network.state_dict(), b.network.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


def write_shards(folder, weights, suffix="safetensors"):
    """Two shards with their index, as a hub has them."""
    names, index, half = list(weights), {}, len(weights) // 2
    stem, write = ("model", save_file) if suffix == "safetensors" else ("pytorch_model", torch.save)
    for number, part in enumerate((names[:half], names[half:]), 1):
        file = f"{stem}-0000{number}-of-00002.{suffix}"
        write({name: weights[name] for name in part}, folder / file)
        index |= dict.fromkeys(part, file)
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return index


@pytest.mark.parametrize(
    "wrap", [lambda w: w, lambda w: {"state_dict": w}, lambda w: {"model": {f"module.{k}": v for k, v in w.items()}}]
)
def test_a_pickled_state_dict_is_the_same_encoder_as_safetensors(tmp_path, wrap):
    save_file(uni(), tmp_path / "a.safetensors")
    torch.save(wrap(uni()), tmp_path / "b.bin")
    assert same(read(tmp_path / "a.safetensors"), read(tmp_path / "b.bin"))


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_shards_are_put_together_by_their_index(tmp_path, suffix):
    save_file(uni(), tmp_path / "whole.safetensors")
    folder = tmp_path / "hub"
    folder.mkdir()
    index = write_shards(folder, uni(), suffix)
    found = read(folder)
    assert same(found, read(tmp_path / "whole.safetensors"))
    digests = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in set(index.values())}
    assert found.provenance["files"] == digests


def test_halves_are_kept_exactly(tmp_path):
    halves = {name: value.half() for name, value in uni().items()}
    save_file(halves, tmp_path / "a.safetensors")
    network = read(tmp_path / "a.safetensors").network
    assert torch.equal(network.blocks[1].mlp.fc1.weight, halves["blocks.1.mlp.fc1.weight"].float())


def test_a_missing_shard_and_one_of_other_content_are_named(tmp_path):
    index = write_shards(tmp_path, uni())
    second = tmp_path / index["norm.bias"]
    content = second.read_bytes()
    second.unlink()
    with pytest.raises(MissingFile, match=second.name):
        read(tmp_path)
    second.write_bytes(content)
    index["extra.weight"] = second.name
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    with pytest.raises(UserError, match=r"shard does not hold.*00002.*extra\.weight.*missing"):
        read(tmp_path)


@pytest.mark.parametrize("content", ["[]", "{}", '{"weight_map": {"a": "../secret.bin"}}', "no json"])
def test_a_damaged_index_is_refused(tmp_path, content):
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(UserError, match=r"model\.safetensors\.index\.json"):
        read(tmp_path)


def test_a_parameter_that_is_missing_or_too_much_is_named(tmp_path):
    weights = uni()
    del weights["blocks.1.ls2.gamma"]
    save_file(weights, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=r"lack parameters of uni.*a\.safetensors.*blocks\.1\.ls2\.gamma"):
        read(tmp_path / "a.safetensors")
    save_file(uni() | {"head.weight": torch.zeros(2, 24)}, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=r"parameters that uni does not have.*head\.weight"):
        read(tmp_path / "a.safetensors")


def test_a_parameter_of_another_shape_is_named_with_both(tmp_path):
    save_file(uni() | {"pos_embed": torch.zeros(1, 16, 24)}, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=r"another shape.*pos_embed.*found: \[1, 16, 24\].*expected: \[1, 17, 24\]"):
        read(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("value", "said"), [(float("nan"), "NaN or Inf"), (float("inf"), "NaN or Inf"), (None, "torch.int64")]
)
def test_a_parameter_that_is_no_finite_number_is_named(tmp_path, value, said):
    bias = torch.zeros(24, dtype=torch.int64) if value is None else torch.full((24,), value)
    save_file(uni() | {"norm.bias": bias}, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=rf"not finite numbers.*norm\.bias.*{said}"):
        read(tmp_path / "a.safetensors")


class Evil:
    """Runs code when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_a_pickle_with_code_is_refused_and_nothing_of_it_runs(tmp_path):
    ran = tmp_path / "ran"
    torch.save(uni() | {"norm.weight": Evil(str(ran))}, tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"more than weights.*a\.pth"):
        read(tmp_path / "a.pth")
    (tmp_path / "b.bin").write_bytes(pickle.dumps(Evil(str(ran))))
    with pytest.raises(UserError, match=r"more than weights.*b\.bin"):
        read(tmp_path / "b.bin")
    assert not ran.exists()


@pytest.mark.parametrize("name", ["a.safetensors", "a.bin", "a.pth"])
@pytest.mark.parametrize("content", [b"", b"nothing", b"PK\x03\x04 cut"])
def test_a_damaged_file_is_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match="damaged") as error:
        read(tmp_path / name)
    assert name in str(error.value)


@pytest.mark.parametrize("content", [[1, 2], {"a": 1}, {}, torch.zeros(3)])
def test_what_torch_saved_must_be_a_state_dict(tmp_path, content):
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"not a state_dict.*a\.pth"):
        read(tmp_path / "a.pth")


def test_a_place_without_weights_is_missing_and_one_with_several_files_is_asked_about(tmp_path):
    with pytest.raises(MissingFile, match="no weights here.*gone"):
        read(tmp_path / "gone")
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "README.md").write_text("x")
    with pytest.raises(UserError, match=r"no weights in this folder.*README\.md"):
        read(tmp_path / "hub")
    for name in ("a.bin", "b.bin"):
        torch.save(uni(), tmp_path / "hub" / name)
    with pytest.raises(UserError, match=r"several files of weights.*a\.bin.*b\.bin"):
        read(tmp_path / "hub")


def test_a_model_is_known_by_its_parameters(tmp_path):
    for name in ("uni", "uni2h", "virchow", "virchow2", "phikon_v2", "gigapath", "conch"):
        save_file(random_weights(tiny_row(name)), tmp_path / f"{name}.safetensors")
    for name in ("uni", "virchow2", "phikon_v2", "conch", "uni2h"):
        found = read(tmp_path / f"{name}.safetensors", model=None)
        assert (found.provenance["model"], found.provenance["guessed"]) == (name, True)


def test_models_with_equal_parameters_are_told_apart_by_their_name_at_the_hub_or_asked_about(tmp_path):
    weights = random_weights(tiny_row("h_optimus_1"))
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"several published models.*h_optimus_0.*h_optimus_1"):
        read(tmp_path / "model.safetensors", model=None)
    folder = tmp_path / "models--bioptimus--H-optimus-1" / "snapshots" / "0a1b"
    folder.mkdir(parents=True)
    save_file(weights, folder / "model.safetensors")
    assert read(folder, model=None).provenance["model"] == "h_optimus_1"


def test_weights_of_nothing_known_are_refused_with_the_names(tmp_path):
    save_file({"layer1.0.conv1.weight": torch.zeros(4, 4)}, tmp_path / "a.safetensors")
    with pytest.raises(
        UserError, match=r"no published model that is known.*layer1\.0\.conv1\.weight \[4, 4\].*virchow2"
    ):
        read(tmp_path / "a.safetensors", model=None)


def test_nothing_is_written_where_the_weights_are_refused(tmp_path):
    save_file(uni(), tmp_path / "a.safetensors")
    read(tmp_path / "a.safetensors").save(str(tmp_path / "encoder"))
    before = describe(str(tmp_path / "encoder"))
    save_file(uni() | {"pos_embed": torch.zeros(1, 3, 24)}, tmp_path / "a.safetensors")
    with pytest.raises(UserError):
        read(tmp_path / "a.safetensors").save(str(tmp_path / "encoder"))
    assert describe(str(tmp_path / "encoder")) == before
