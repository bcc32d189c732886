"""Encoder artifacts: what is loaded is what was saved, or an error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pathray.errors import MissingFile, UserError
from pathray.nn.vit import ViT, ViTConfig
from pathray.store.artifact import DESCRIPTION, WEIGHTS, EncoderArtifact, describe
from pathray.store.records import add_seal
from pathray.store.storage import Storage
from tests.builders.storage import FaultyFileSystem

PREPROCESSING = {"mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2], "size": 32, "mpp": 0.5}


def tiny(seed: int = 0, **changes: Any) -> ViT:
    torch.manual_seed(seed)
    config = {"img_size": (32, 32), "patch_size": (8, 8), "dim": 16, "depth": 2, "heads": 2, "registers": 1}
    return ViT(ViTConfig(**{**config, **changes})).eval()


def save(folder: str, vit: ViT) -> dict[str, Any]:
    return EncoderArtifact.save(
        folder, vit, preprocessing=PREPROCESSING, science="ijepath", provenance={"images_seen": 5, "tag": "demo"}
    )


@pytest.fixture(params=["local", "faulty"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("PATHRAY_CACHE_DIR", str(tmp_path / "cache"))
    FaultyFileSystem.reset()
    return str(tmp_path / "encoder") if request.param == "local" else "faulty://bucket/encoder"


def test_a_loaded_encoder_gives_the_same_features(folder: str) -> None:
    vit, x = tiny(), torch.rand(2, 3, 32, 32)
    saved = save(folder, vit)
    loaded, description = EncoderArtifact.load(folder)
    assert torch.equal(loaded(x), vit(x)) and not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())
    assert description == saved
    assert description["preprocessing"] == {**PREPROCESSING, "layout": "NCHW"} and description["mpp"] == 0.5
    assert (description["science"], description["provenance"]["tag"]) == ("ijepath", "demo")
    assert loaded.config == vit.config and describe(folder) == saved


def test_a_volume_encoder_says_its_layout(folder: str) -> None:
    vit = tiny(img_size=(8, 16, 16), patch_size=(4, 8, 8), in_channels=1)
    assert save(folder, vit)["preprocessing"]["layout"] == "NCDHW"
    assert EncoderArtifact.load(folder)[0].config == vit.config


def test_an_encoder_may_be_replaced(folder: str) -> None:
    first = save(folder, tiny(0))
    second = save(folder, tiny(1))
    assert first["sha256"] != second["sha256"] and EncoderArtifact.load(folder)[1]["sha256"] == second["sha256"]


def test_half_an_artifact_is_no_artifact(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    save(folder, tiny(0))
    plain = Storage.write_bytes

    def dies_at_the_description(self: Storage, name: str, data: bytes) -> None:
        if name == DESCRIPTION:
            raise KeyboardInterrupt
        plain(self, name, data)

    monkeypatch.setattr(Storage, "write_bytes", dies_at_the_description)
    with pytest.raises(KeyboardInterrupt):
        save(folder, tiny(1))
    with pytest.raises(MissingFile, match="no encoder here"):
        EncoderArtifact.load(folder)


def test_altered_weights_are_refused(folder: str) -> None:
    save(folder, tiny())
    store = Storage.of(folder)
    data = bytearray(store.read_bytes(WEIGHTS))
    data[-1] ^= 1
    store.write_bytes(WEIGHTS, bytes(data))
    with pytest.raises(UserError, match="weights were altered"):
        EncoderArtifact.load(folder)


def test_an_altered_description_is_refused(folder: str) -> None:
    save(folder, tiny())
    store = Storage.of(folder)
    description = json.loads(store.read_bytes(DESCRIPTION))
    description["preprocessing"]["mean"] = [0.0, 0.0, 0.0]
    store.write_bytes(DESCRIPTION, json.dumps(description).encode())
    with pytest.raises(UserError, match="description was altered"):
        EncoderArtifact.load(folder)


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"schema_version": 1}', b"not json"])
def test_what_is_no_description_is_refused(folder: str, content: bytes) -> None:
    save(folder, tiny())
    Storage.of(folder).write_bytes(DESCRIPTION, content)
    with pytest.raises(UserError, match="encoder's description|altered"):
        EncoderArtifact.load(folder)


def test_a_newer_version_is_refused(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pathray.store.artifact_kind.SCHEMA_VERSION", 7)
    save(folder, tiny())
    monkeypatch.undo()
    with pytest.raises(UserError, match="newer version .*found: 7"):
        EncoderArtifact.load(folder)


def test_nan_in_provenance_is_refused(folder: str) -> None:
    with pytest.raises(ValueError, match="JSON"):
        EncoderArtifact.save(
            folder, tiny(), preprocessing=PREPROCESSING, science="x", provenance={"loss": float("nan")}
        )
    with pytest.raises(MissingFile):
        describe(folder)


def test_a_plain_file_is_no_encoder(tmp_path) -> None:
    (tmp_path / "encoder").write_text("none")
    with pytest.raises(MissingFile, match="no encoder here.*artifact.json"):
        EncoderArtifact.load(str(tmp_path / "encoder"))


def test_a_description_that_builds_no_network_is_refused_by_its_file(folder: str) -> None:
    save(folder, tiny())
    store = Storage.of(folder)
    for change, named in (({"architecture": "cnn"}, "another architecture"), ({"vit": {"width": 3}}, "cannot be used")):
        description = json.loads(store.read_bytes(DESCRIPTION)) | change
        del description["digest"]
        store.write_bytes(DESCRIPTION, json.dumps(add_seal(description)).encode())
        with pytest.raises(UserError, match=named) as error:
            EncoderArtifact.load(folder)
        assert str(error.value.where["file"]).endswith(f"encoder/{DESCRIPTION}")
        save(folder, tiny())
