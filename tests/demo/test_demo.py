"""The demo's own logic: arguments, the commands it runs, the summary. The whole of it is an integration test."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

import demo.__main__ as program
from demo import summary
from ijepath.config import CONFIGS_DIR, GROUPS
from pathray.config.load import load_config
from pathray.errors import UserError


def test_arguments_of_the_demo_and_of_the_training_are_told_apart() -> None:
    arguments = program.parse(["slides=in", "mpp=0.5", "samples=2", "optimization.total_images_budget=64"])
    assert (arguments.slides, arguments.mpp, arguments.samples) == ("in", 0.5, 2)
    assert arguments.training == ["optimization.total_images_budget=64"]


@pytest.mark.parametrize("word", ["slide=in", "slides", "mpp=half", "mpp=-1", "samples=0"])
def test_wrong_arguments_are_refused(word: str) -> None:
    with pytest.raises(UserError):
        program.parse([word])


def test_help_is_printed_and_nothing_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    program.main(["samples=2", "--help"])
    assert "slides=folder [mpp=0.5]" in capsys.readouterr().out and list(tmp_path.iterdir()) == []


def test_a_failing_job_ends_the_demo_with_its_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program.subprocess, "Popen", lambda words, env: _Ended(3))
    with pytest.raises(program.Failed) as error:
        program._run("a step", ["plot_training", "run=x"])
    assert error.value.code == 3


class _Ended:
    def __init__(self, code: int) -> None:
        self.code = code

    def wait(self) -> int:
        return self.code


def test_the_demo_runs_the_shipped_config_on_the_folder_it_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands: list[list[str]] = []
    manifest = tmp_path / "slides.csv"
    manifest.write_text("slide_id,wsi_path,mask_path,site\ns1,a.tif,,north\ns2,b.tif,,south\n")

    def run(title: str, command: list[str]) -> float:
        commands.append(command)
        _finished_run(tmp_path / "out")
        return 12.0

    monkeypatch.setattr(program, "_run", run)
    program.main([f"slides={manifest}", f"output={tmp_path / 'out'}", "data.seed=3"])
    assert [c[0] for c in commands] == ["pretrain_ijepath", "preview_ijepath", "plot_training"]
    assert f"data.slide_manifest_csv={manifest}" in commands[0] and commands[0][-1] == "data.seed=3"
    assert "config_resolved.yaml" in commands[1][2]
    printed = capsys.readouterr().out
    assert "0.8000 → 0.4000 (-50%)" in printed and "2 of 2 hospitals (north, south)" in printed
    assert "-m mlflow ui --backend-store-uri sqlite:///" in printed and "index.html" in printed


def _finished_run(output: Path) -> None:
    run, pictures = output / "run", output / "pictures"
    for folder in (run / "indexes", pictures / "overlays"):
        folder.mkdir(parents=True, exist_ok=True)
    (run / "indexes" / "anchor_catalog_manifest.json").write_text(json.dumps({"total_anchors": 1234}))
    rows = [
        {"images_seen": 0, "anchor_count": 1234.0},
        {"images_seen": 64, "loss": 0.8, "target_rankme": 20.0, "images_per_s": 9.0},
        {"images_seen": 128, "loss": 0.4, "target_rankme": 22.0, "images_per_s": 11.0},
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (run / "mlflow.db").write_bytes(b"")
    picture = Image.fromarray(np.zeros((90, 2000, 3), np.uint8))
    for name in ("curves.png", "preview_s000_a.png", "preview_s001_b.png", "overlays/s<1>.png"):
        picture.save(pictures / name)
    picture.save(pictures / "ijepa_s000_a.gif")


def test_the_page_holds_its_pictures_itself_and_escapes_names(tmp_path: Path) -> None:
    _finished_run(tmp_path)
    manifest = tmp_path / "m.csv"
    manifest.write_text("slide_id,wsi_path,mask_path\na,a.tif,\n")
    facts = summary.gather(tmp_path, manifest, 3.0, 5.0)
    page = summary.write_page(tmp_path, facts).read_text()
    assert page.count("data:image/jpeg;base64,") == 3 and page.count("data:image/gif;base64,") == 1
    assert 'src="/' not in page and "http" not in page.replace("http-equiv", "")
    assert "s&lt;1&gt;" in page and "s<1>" not in page
    assert facts.images == 128 and facts.anchors == 1234 and facts.images_per_s == 11.0


def test_a_run_that_logged_nothing_is_summed_up_without_figures(tmp_path: Path) -> None:
    _finished_run(tmp_path)
    (tmp_path / "run" / "metrics.jsonl").write_text("")
    (tmp_path / "m.csv").write_text("slide_id,wsi_path,mask_path\na,a.tif,\n")
    facts = summary.gather(tmp_path, tmp_path / "m.csv", 3.0, 5.0)
    assert facts.loss is None and "loss" not in dict(summary.figures(facts))


def test_the_demo_config_is_one_of_the_shipped_ones_and_sound() -> None:
    from ray_jobs.pretrain_ijepath import PretrainConfig

    config = load_config(PretrainConfig, ["--config", "demo"], configs_dir=CONFIGS_DIR, groups=GROUPS).config
    assert config.data.validate() and config.scaling.workers == 2 and config.model.name == "vit_micro"


def _page(output: Path, train_s: float = 3.0) -> str:
    (output / "m.csv").write_text("slide_id,wsi_path,mask_path\na,a.tif,\n")
    return summary.write_page(output, summary.gather(output, output / "m.csv", train_s, train_s + 2)).read_text()


def test_the_page_links_its_sections_and_the_files_that_are_there(tmp_path: Path) -> None:
    _finished_run(tmp_path)
    page = _page(tmp_path)
    ids = re.findall(r'<section id="([^"]+)"', page)
    links = re.findall(r'href="([^"]+)"', page)
    assert [link[1:] for link in links if link.startswith("#")] == ids and len(ids) >= 4
    files = [unquote(link) for link in links if not link.startswith("#")]
    assert "run/metrics.jsonl" in files and all((tmp_path / file).exists() for file in files)


def test_every_picture_can_be_enlarged_and_says_what_is_seen(tmp_path: Path) -> None:
    _finished_run(tmp_path)
    page = _page(tmp_path)
    assert page.count("<img ") == page.count('<input type="checkbox"') == 4 and "<script" not in page
    alts, captions = re.findall(r'<img alt="([^"]*)"', page), re.findall(r"<figcaption>(.*?)</figcaption>", page)
    assert len(captions) == 4 and all(len(text) > 40 for text in [*alts, *captions])
    assert "A dot is the centre of an anchor" in page and "@media (max-width: 700px)" in page


@pytest.mark.parametrize(
    "name", ["<script>alert(1)<script>", "<img onerror=alert(1)>", 'a"onerror="x', "&amp;<b>", "BODY STYLE"]
)
def test_names_of_slides_and_folders_are_text(tmp_path: Path, name: str) -> None:
    output = tmp_path / f"out {name}"
    _finished_run(output)
    (output / "pictures/overlays/s<1>.png").rename(output / "pictures/overlays" / f"{name}.png")
    page = _page(output)
    assert name in html.unescape(page) and (not set(name) & set('<"') or name not in page)
    assert page.count("<style>") == page.count('<section id="figures">') == 1


def test_a_rerun_keeps_the_times_of_the_start_that_trained(tmp_path: Path) -> None:
    _finished_run(tmp_path)
    _page(tmp_path, train_s=60.0)
    assert "62 s, of which index, anchors and training 60 s" in _page(tmp_path, train_s=1.0)
    with (tmp_path / "run" / "metrics.jsonl").open("a") as f:
        f.write(json.dumps({"images_seen": 256, "loss": 0.2}) + "\n")
    assert "training 9 s" in _page(tmp_path, train_s=9.0)
    (tmp_path / summary.TIMES).write_bytes(b"\xff")
    assert "training 4 s" in _page(tmp_path, train_s=4.0)


def test_damaged_lines_of_a_run_do_not_end_the_summary(tmp_path: Path) -> None:
    _finished_run(tmp_path)
    for name in ("metrics.jsonl", "robustness.jsonl"):
        with (tmp_path / "run" / name).open("ab") as f:
            f.write(b'{"images_seen": 9\xff\n7\n{"loss": 1}\n{"half')
    assert "0.8000 → 0.4000" in _page(tmp_path)


def _judged_run(output: Path, explained: float, probes: list[tuple[int, float]]) -> summary.Facts:
    """A finished run that logged what predictions explain, and a probe per snapshot."""
    _finished_run(output)
    with (output / "run" / "metrics.jsonl").open("a") as f:
        f.write(json.dumps({"images_seen": 64, "explained": -7.0}) + "\n")
        f.write(json.dumps({"images_seen": 128, "explained": explained}) + "\n")
    rows = [{"images_seen": seen, "status": "ok", summary.PROBE: value} for seen, value in probes]
    (output / "run" / "robustness.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (output / "m.csv").write_text("slide_id,wsi_path,mask_path\na,a.tif,\n")
    return summary.gather(output, output / "m.csv", 3.0, 5.0)


@pytest.mark.parametrize(
    ("explained", "probes", "words"),
    [
        (
            0.31,
            [(0, 0.5), (128, 0.7)],
            ["explains 31%", "start none", "have improved", "has 0.70", "weights 0.50"],
        ),
        (0.31, [(0, 0.5), (128, 0.52)], ["explains 31%", "have not learned tissue", "has 0.52", "weights 0.50"]),
        (-0.2, [(0, 0.7), (128, 0.5)], ["no more than the mean", "have not learned tissue"]),
    ],
)
def test_the_page_says_whether_anything_was_learned(
    tmp_path: Path, explained: float, probes: list[tuple[int, float]], words: list[str]
) -> None:
    facts = _judged_run(tmp_path, explained, probes)
    page = html.unescape(summary.write_page(tmp_path, facts).read_text())
    for text in (page, summary.text(facts, tmp_path / "index.html")):
        assert all(word in text for word in words), text


def test_a_probe_without_random_weights_is_no_comparison(tmp_path: Path) -> None:
    facts = _judged_run(tmp_path, 0.31, [(64, 0.5), (128, 0.7)])
    assert facts.probe is None and "probe" not in summary.verdict(facts)
