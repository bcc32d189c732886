"""The command that exports: what `model` may be, what it refuses, and that it then leaves nothing."""

import json
import shutil

import pytest
import torch

from mil.artifact import load
from mil.export.description import read_export
from mil.export.parity import random_bags
from mil.sections import CONFIGS_DIR
from pathray.device import Device
from pathray.run.layout import PLAN
from pathray.store import checkpoint
from ray_jobs import export_mil
from ray_jobs.export_mil import ExportMILConfig
from ray_jobs.shell.cli import run_job
from tests.builders.mil import fold_plan, trained, write_cohort
from tests.builders.slide_models import WIDTH, write_slide_model


def run(*argv) -> int:
    return run_job(export_mil.main, ExportMILConfig, argv, CONFIGS_DIR)


@pytest.fixture(scope="module")
def fold(tmp_path_factory):
    """A finished run of one fold, with its plan."""
    root = write_cohort(tmp_path_factory.mktemp("cohort"))
    folder = tmp_path_factory.mktemp("training") / "fold_0"
    plan = fold_plan(root, folder / PLAN)
    trained(Device.of("cpu"), plan.path, str(root), str(folder))
    return folder


def predicted(folder, bags):
    return read_export(str(folder)).open("ts")(*bags)[0]


def test_a_fold_and_its_artifact_are_the_same_model(fold, tmp_path):
    assert run(f"model={fold}", f"output={tmp_path}/a", "formats=[ts]") == 0
    assert run(f"model={fold}/encoder", f"output={tmp_path}/b", "formats=[ts]") == 0
    bags, net = random_bags((30, 11), WIDTH), load(str(fold / "encoder")).net
    wanted = torch.stack(list(net.head.predict(net(*bags).logits).values()), dim=1)
    for name in "ab":
        torch.testing.assert_close(predicted(tmp_path / name, bags), wanted)


def test_a_checkpoint_is_the_model_of_its_moment(fold, tmp_path):
    found = {path.name: checkpoint.load(str(path))[0] for path in (fold / "checkpoints").iterdir()}
    key = "model.net.head.linear.weight"
    assert len({str(tensors[key].tolist()) for tensors in found.values()}) > 1
    bags = random_bags((30,), WIDTH)
    for name, tensors in found.items():
        folder = tmp_path / name
        assert run(f"model={fold}/checkpoints/{name}", f"output={folder}", "formats=[ts]") == 0
        net = load(str(fold / "encoder")).net
        net.load_state_dict({k.removeprefix("model.net."): v for k, v in tensors.items() if k.startswith("model.net.")})
        wanted = torch.stack(list(net.head.predict(net(*bags).logits).values()), dim=1)
        torch.testing.assert_close(predicted(folder, bags), wanted)
        assert json.loads((folder / "export.json").read_text())["provenance"]["checkpoint"] == name


def test_a_training_without_an_ensemble_lists_its_models(fold, tmp_path, capsys):
    assert run(f"model={fold.parent}", f"output={tmp_path}/out") == 2
    said = capsys.readouterr().err
    assert "fold_0/encoder" in said and "model=" in said and not (tmp_path / "out").exists()


def test_a_fold_that_is_not_finished_lists_its_checkpoints(fold, tmp_path, capsys):
    shutil.copytree(fold, tmp_path / "fold_0", ignore=shutil.ignore_patterns("encoder"))
    assert run(f"model={tmp_path}/fold_0", f"output={tmp_path}/out") == 2
    assert "checkpoints/mil-" in capsys.readouterr().err
    assert run(f"model={tmp_path}/nothing", f"output={tmp_path}/out") == 2
    assert "no model of slides here" in capsys.readouterr().err


ONE = {"value": 0.81, "low": 0.7, "high": 0.9, "reason": None}


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        ({"slides_as_units": {"classes": ["a", "b"], "overall": {"auroc": ONE}}}, "AUROC"),
        ({"survival": {"c_index": ONE}}, "concordance (C-index)"),
        ({"regression": {"mae": ONE}}, "mae"),
    ],
)
def test_an_ensemble_of_a_training_is_exported_with_its_scores(scores, said, tmp_path):
    """Whatever is in models/ensemble: here a single model."""
    write_slide_model(tmp_path / "models" / "ensemble")
    (tmp_path / "metrics.json").write_text(json.dumps({"slides": 40, "patients": 20} | scores))
    assert run(f"model={tmp_path}", f"output={tmp_path}/export", "formats=[ts]") == 0
    card = (tmp_path / "export" / "model_card.md").read_text()
    assert f"{said}: 0.810 [0.700, 0.900]" in card and "Of 40 slides of 20 patients" in card


def test_altered_weights_are_refused(tmp_path, capsys):
    write_slide_model(tmp_path / "model")
    data = bytearray((tmp_path / "model" / "weights.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "model" / "weights.safetensors").write_bytes(data)
    assert run(f"model={tmp_path}/model", f"output={tmp_path}/out") == 2
    assert "the weights were altered" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_dry_run_checks_the_model_and_writes_nothing(tmp_path, caplog):
    caplog.set_level("INFO")
    write_slide_model(tmp_path / "model")
    assert run(f"model={tmp_path}/model", f"output={tmp_path}/out", "--dry-run") == 0
    assert "dry run: 3 formats" in caplog.text and not (tmp_path / "out").exists()


@pytest.mark.parametrize(("words", "said"), [(("formats=[h5]",), "unknown format"), (("kind=x",), "kind")])
def test_unknown_words_are_refused(words, said, tmp_path, capsys):
    write_slide_model(tmp_path / "model")
    assert run(f"model={tmp_path}/model", f"output={tmp_path}/out", *words) == 2
    assert said in capsys.readouterr().err
    assert run(f"model={tmp_path}/model", f"output={tmp_path}/model") == 2
    assert "a folder of its own" in capsys.readouterr().err
