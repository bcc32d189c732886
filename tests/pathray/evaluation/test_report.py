"""The report of a run: what is drawn and written, from files as a run leaves them."""

from __future__ import annotations

import html
import json
import re
from base64 import b64decode
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from pathray.errors import MissingFile, UserError
from pathray.evaluation import embedding_chart, report_charts
from pathray.evaluation.datasets import open_dataset
from pathray.evaluation.embedding_chart import draw_embedding
from pathray.evaluation.metric_names import list_metrics
from pathray.evaluation.projection import Embedding, embed, load_embedding, save_embedding
from pathray.evaluation.report import write_report
from pathray.evaluation.report_charts import draw_robustness
from pathray.store.metrics_log import to_line
from pathray.store.storage import Storage
from tests.builders.evaluation import cohort

CAM = "pathorob/camelyon"


def row(images, status="ok", error="", notes=(), **metrics):
    tune = {"tune/tune_index": images // 100, "tune/lag_images": 5, "tune/lag_s": 1.25, "tune/evaluator_s": 9.5}
    values = {key.replace("__", "/"): value for key, value in metrics.items()}
    return {"images_seen": images, "status": status, "error": error, "notes": list(notes), **tune, **values}


def scores(dataset="camelyon", *, ri=0.5, apd=-0.1):
    prefix = f"pathorob__{dataset}__"
    out = {"ri": ri, "ri_k": 11.0, "acc_knn": 0.9, "apd_id": apd, "apd_id_low": apd - 0.02, "apd_id_high": apd + 0.03}
    for s in range(3):
        out |= {f"acc_id_{s}": 0.9 + apd * s, f"acc_ood_{s}": 0.8 + apd * s, f"cramers_v_{s}": s / 2}
    return {prefix + key: value for key, value in out.items()}


def write(run, rows, tail=b""):
    run.mkdir(exist_ok=True)
    (run / "robustness.jsonl").write_bytes(b"".join(to_line(r) for r in rows) + tail)
    return str(run)


@pytest.fixture
def figures(monkeypatch):
    """The figures that are drawn, instead of their PNGs."""
    found = []
    for module in (report_charts, embedding_chart):
        monkeypatch.setattr(module, "to_png", lambda figure: found.append(figure) or b"png")
    return found


def panels(figure):
    return {axes.get_title(loc="left"): axes for axes in figure.axes}


def test_the_page_holds_its_pictures_and_needs_no_other_file(tmp_path):
    run = write(tmp_path / "run", [row(100, **scores(ri=0.6)), row(0, **scores())])
    page = write_report(run)
    assert page == f"{run}/robustness/report.html"
    text = (tmp_path / "run/robustness/report.html").read_text()
    (embedded,) = re.findall(r'src="data:image/png;base64,([^"]+)"', text)
    assert b64decode(embedded) == (tmp_path / "run/robustness/curves.png").read_bytes()
    assert Image.open(BytesIO(b64decode(embedded))).width > 800
    assert not re.search(r"(src|href)=\"(?!data:)", text) and "$body" not in text
    assert "<td>0.600</td>" in text and "<td>−0.100 [−0.120, −0.070]</td>" in text
    assert text.index("<td>100</td>") < text.index("<td>0</td>"), "the newest evaluation stands first"


def test_rows_may_come_in_any_order_and_lack_metrics(figures):
    rows = [row(200, **scores(ri=0.7)), row(0, **scores(ri=0.5)), row(100, pathorob__camelyon__apd_id=-0.2)]
    draw_robustness(rows, "run")
    (line, *_) = panels(figures[0])["Robustness index"].lines
    assert line.get_xydata().tolist() == [[0, 0.5], [200, 0.7]]
    (line, *_) = panels(figures[0])["Performance drop, in-domain"].lines
    assert line.get_xydata().tolist() == [[0, -0.1], [100, -0.2], [200, -0.1]]


def test_an_interval_is_a_band_where_it_was_computed(figures):
    draw_robustness([row(i, **scores()) for i in (0, 100)], "run")
    band, *_ = panels(figures[0])["Performance drop, in-domain"].collections
    heights = band.get_paths()[0].vertices[:, 1]
    assert heights.min() == pytest.approx(-0.12) and heights.max() == pytest.approx(-0.07)
    assert not panels(figures[0])["Robustness index"].collections


def test_a_panel_per_metric_and_a_line_per_dataset(figures):
    rows = [
        row(i, **scores(), **scores("esca", ri=0.9), probe__esca__linear_id=0.8, mine__esca__odd=3.0) for i in (0, 9)
    ]
    draw_robustness(rows, "run")
    titles = list(panels(figures[0]))
    assert titles == [
        "Robustness index", "Accuracy of the neighbours' vote", "Performance drop, in-domain",
        "Linear probe, in-domain", "odd", *(f"{d}: accuracy, {w}" for d in ("camelyon", "esca") for w in
                                     ("in-domain", "out-of-domain")),
    ]  # fmt: skip
    two = panels(figures[0])["Robustness index"].lines[:2]
    assert [line.get_ydata()[0] for line in two] == [0.5, 0.9]
    assert two[0].get_color() != two[1].get_color()
    labels = [t.get_text() for t in figures[0].legends[0].get_texts()]
    assert labels == ["camelyon", "esca", "95% interval"]


def test_accuracy_stands_over_cramers_v_with_a_line_per_evaluation(figures):
    draw_robustness([row(i, **scores(apd=-i / 1000)) for i in (200, 0, 100)], "run", best_images=100)
    axes = panels(figures[0])["camelyon: accuracy, out-of-domain"]
    assert axes.lines[2].get_xydata() == pytest.approx(np.array([[0, 0.8], [0.5, 0.6], [1, 0.4]]))
    assert [t.get_text() for t in axes.get_legend().get_texts()] == ["0 (first)", "100 (best)", "200 (newest)"]


def test_chance_does_not_look_like_a_cliff_and_no_axis_leaves_the_metrics_range(figures):
    wide = {f"{CAM}/clustering_score{end}": v for end, v in (("", 0.4), ("_low", -0.4), ("_high", 1.2))}
    draw_robustness([row(i, **scores(ri=0.7 + i / 1e5)) | wide for i in (0, 100)], "run")
    low, high = panels(figures[0])["Robustness index"].get_ylim()
    assert high - low == pytest.approx(0.1) and low < 0.7 < high
    assert panels(figures[0])["Clustering score"].get_ylim()[1] == pytest.approx(1.02)


def test_failed_and_dropped_evaluations_are_marked_on_the_axis(figures):
    draw_robustness([row(0, **scores()), row(50, "dropped"), row(100, "failed", "boom"), row(150, "failed")], "run")
    marked = {
        line.get_marker(): line.get_xdata()
        for line in panels(figures[0])["Robustness index"].lines
        if line.get_linestyle() == "None"
    }
    assert list(marked["x"]) == [100, 150] and list(marked["o"]) == [50]
    labels = [t.get_text() for t in figures[0].legends[0].get_texts()]
    assert "failed evaluation" in labels and "dropped evaluation" in labels


def test_the_best_evaluation_is_marked(figures, tmp_path):
    run = write(tmp_path / "run", [row(i, **scores(ri=ri)) for i, ri in ((0, 0.4), (100, 0.8), (200, 0.6))])
    decision = {"best_images": 100, "metric": f"{CAM}/ri", "mode": "max", "stop": True, "decided_at_images": 200}
    (tmp_path / "run/early_stopping.json").write_text(json.dumps(decision))
    text = open(write_report(run)).read()
    axes = panels(figures[0])["Robustness index"]
    star = next(line for line in axes.lines if line.get_marker() == "*")
    assert star.get_xydata().tolist() == [[100, 0.8]]
    assert any(list(line.get_xdata()) == [100, 100] for line in axes.lines)
    assert "<td>100 ★</td>" in text and "100 images, 0.800 (largest pathorob/camelyon/ri)" in text
    assert "stop at 200 images" in text


def test_a_half_written_row_is_left_out(tmp_path):
    page = write_report(write(tmp_path / "run", [row(7, **scores())], tail=b'{"images_seen": 100, "status": "o'))
    assert "<dd>1: 1 evaluated</dd>" in open(page).read()
    with pytest.raises(UserError, match=r"no evaluation.*robustness\.jsonl"):
        write_report(write(tmp_path / "young", [], tail=b'{"images_seen": 0'))


def test_the_run_may_be_in_a_bucket():
    run = "memory://report/run"
    store = Storage.of(run)
    store.write_bytes("robustness.jsonl", to_line(row(0, **scores())))
    data = cohort(slides=1, patches=3)
    store.write_bytes("m.csv", data.text().encode())
    save_embedding(f"{run}/robustness/embeddings", open_dataset("camelyon", f"{run}/m.csv"), embed(data.x), 0)
    assert write_report(run) == f"{run}/robustness/report.html"
    assert store.at("robustness").list() == ["curves.png", "embedding_0_first.png", "embeddings", "report.html"]


def test_rows_and_embeddings_of_an_earlier_run_in_the_folder_are_left_out(tmp_path):
    rows = [row(50, **scores()) | {"identity": "old"}] + [row(i, **scores()) | {"identity": "new"} for i in (100, 0)]
    run = write(tmp_path / "run", rows)
    data = cohort(slides=1, patches=3)
    for images in (50, 100):
        dataset = open_dataset("camelyon", data.write(tmp_path / "m.csv"))
        save_embedding(f"{run}/robustness/embeddings", dataset, embed(data.x), images)
    text = open(write_report(run)).read()
    assert "<td>50</td>" not in text and "<td>100</td>" in text
    assert re.findall(r"<figcaption>camelyon at (\d+) images", text) == ["100"]


def test_a_run_without_evaluations_is_named(tmp_path):
    with pytest.raises(MissingFile, match=r"run/robustness\.jsonl"):
        write_report(str(tmp_path / "run"))


@pytest.mark.parametrize("evil", ["<script>alert(1)</script>$x^$&", "<img onerror=alert(1)>", "{{ title }}</pre>"])
def test_what_others_wrote_is_text_and_no_markup(tmp_path, evil):
    rows = [row(0, "failed", f"Traceback {evil}", [f"note {evil}"], **{f"pathorob/{evil}/ri": 0.5})]
    rows[0]["status"] = "failed"
    run = write(tmp_path / "<b>run", rows)
    (tmp_path / "<b>run/early_stopping.json").write_text(json.dumps({"metric": evil, "best_images": None}))
    data = cohort(slides=1, patches=3)
    data.labels = np.char.add(data.labels, "$_<i>")
    dataset = open_dataset(evil, data.write(tmp_path / "m.csv"))
    save_embedding(f"{run}/robustness/embeddings", dataset, embed(data.x), 0)
    text = open(write_report(run)).read()
    assert "<script" not in text and "<b>run" not in text and "<img onerror" not in text
    assert text.count("</pre>") == text.count("<pre>") and html.unescape(text).count(evil) >= 5


def test_rows_of_failures_alone_still_make_a_page(tmp_path):
    page = write_report(write(tmp_path / "run", [row(0, "failed", "no\nmemory"), row(100, "dropped")]))
    text = open(page).read()
    assert "<pre>no\nmemory</pre>" in text and "No metric was computed yet" in text
    assert "2: 0 evaluated, 1 failed, 1 dropped" in text
    with pytest.raises(UserError, match="no metric to draw"):
        draw_robustness([row(0, "failed")], "run")


def test_equal_notes_are_said_once_with_their_evaluations(tmp_path):
    note = "apd: too few slides"
    rows = [row(i, notes=[note, "odd"] if i == 100 else [note], **scores()) for i in (0, 100, 200)]
    text = open(write_report(write(tmp_path / "run", rows))).read()
    assert text.count(note) == 1 and "(3 evaluations, at 0 to 200 images)" in text and "(at 100 images)" in text


def test_a_metric_that_is_nan_is_shown_as_such(tmp_path):
    rows = [row(0, **scores(ri=float("nan"))), row(100, **scores(ri=0.5))]
    text = open(write_report(write(tmp_path / "run", rows))).read()
    assert "<td>nan</td>" in text


def test_embeddings_of_the_first_the_best_and_the_newest_evaluation_are_shown(tmp_path):
    run = write(tmp_path / "run", [row(i, **scores()) for i in (0, 100, 200, 300)])
    (tmp_path / "run/early_stopping.json").write_text(json.dumps({"metric": f"{CAM}/ri", "best_images": 200}))
    data = cohort(slides=2, patches=4)
    dataset = open_dataset("camelyon", data.write(tmp_path / "m.csv"))
    for images in (0, 100, 200, 300):
        save_embedding(f"{run}/robustness/embeddings", dataset, embed(data.x), images)
    text = open(write_report(run)).read()
    shown = re.findall(r"<figcaption>camelyon at (\d+) images seen \((.*?)\)</figcaption>", text)
    assert shown == [("0", "first"), ("200", "best"), ("300", "newest")]
    assert sorted(p.name for p in (tmp_path / "run/robustness").glob("*.png")) == [
        "curves.png", "embedding_0_best.png", "embedding_0_first.png", "embedding_0_newest.png"
    ]  # fmt: skip


def test_an_embedding_is_drawn_twice_on_the_same_axes(figures, tmp_path):
    data = cohort(slides=2, patches=4, ood=True)
    dataset = open_dataset("mine", data.write(tmp_path / "m.csv"))
    save_embedding(str(tmp_path), dataset, embed(data.x), 0)
    draw_embedding(load_embedding(str(tmp_path), "mine", 0), "mine")
    left, right = figures[0].axes
    assert left.get_xlim() == right.get_xlim() and left.get_ylim() == right.get_ylim()
    for axes, names in ((left, ["y0 (24)", "y1 (24)"]), (right, ["c0 (16)", "c1 (16)", "c2 (16)"])):
        assert sum(len(c.get_offsets()) for c in axes.collections) == 48
        assert [t.get_text() for t in axes.get_legend().get_texts()] == names


def test_more_groups_than_can_be_told_apart_are_others(figures):
    from pathray.evaluation.projection import Saved

    n = 80
    points = np.random.default_rng(0).normal(size=(n, 2)).astype(np.float32)
    same, ids = np.array(["a"] * n), np.array([f"site{i // 2:02}" for i in range(n)])
    subset = np.array(["ID"] * n)
    draw_embedding(Saved("d", 0, Embedding(points, "umap", None), same, ids, same, subset), "many")
    texts = [t.get_text() for t in figures[0].axes[1].get_legend().get_texts()]
    assert len(texts) == 35 and texts[-1] == "6 others"
    looks = {(h.get_color(), h.get_marker()) for h in figures[0].axes[1].get_legend().legend_handles[:-1]}
    assert len(looks) == 34


def test_the_tunings_own_figures_and_ends_of_intervals_are_no_metrics():
    rows = [{"images_seen": 0, "tune/a/b": 1, "p/d/x": 1, "p/d/x_low": 0, "p/d/x_high": 2, "p/d/too_low": 1, "loss": 1}]
    assert [n.full for n in list_metrics(rows)] == ["p/d/too_low", "p/d/x"]


def test_the_report_says_what_its_rows_and_columns_mean(tmp_path):
    run = write(tmp_path / "run", [row(i, **scores()) for i in (0, 100)])
    (tmp_path / "run/early_stopping.json").write_text(json.dumps({"metric": f"{CAM}/ri", "best_images": 100}))
    text = open(write_report(run)).read()
    said = re.findall(r"<dt>([^<]*)</dt><dd class=plain>", text)
    assert {"a row", "images seen", "tune index", "status", "ri", "acc_knn", "★", "lag", "evaluator, s"} <= set(said)
    assert "clustering_score" not in said, "a column that is not there is not explained"


def test_a_metric_that_failed_alone_is_among_the_errors(tmp_path):
    broken = {"failed": {"probe/camelyon/linear": "ZeroDivisionError: <b>division</b>"}}
    text = open(write_report(write(tmp_path / "run", [row(0, **scores()) | broken]))).read()
    assert "probe/camelyon/linear failed" in text and "ZeroDivisionError: &lt;b&gt;division" in text


@pytest.mark.parametrize(
    "metric, low, high, shown",
    [("clustering_score", -1.4, 1.2, "[−1.000, 1.000]"), ("apd_avg", -1.5, 0.25, "[−1.000, 0.250]")],
)
def test_intervals_of_older_versions_are_cut_at_the_metrics_range(figures, tmp_path, metric, low, high, shown):
    values = {f"{CAM}/{metric}": 0.0, f"{CAM}/{metric}_low": low, f"{CAM}/{metric}_high": high}
    rows = [row(i) | values for i in (0, 100)]
    assert shown in open(write_report(write(tmp_path / "run", rows))).read()
    (band, *_) = next(iter(panels(figures[0]).values())).collections
    heights = band.get_paths()[0].vertices[:, 1]
    assert heights.min() == -1 and heights.max() == min(high, 1)


def test_a_dataset_has_one_colour_in_every_panel_and_none_is_that_of_a_failure(figures):
    rows = [row(i, **scores("a"), **scores("b")) for i in (0, 100)] + [row(200, "failed", "boom")]
    draw_robustness(rows, "run")
    shown = panels(figures[0])
    for at, dataset in enumerate("ab"):
        colours = {shown["Robustness index"].lines[at].get_color()}
        colours |= {line.get_color() for where in ("in", "out-of") for line in
                    shown[f"{dataset}: accuracy, {where}-domain"].lines}  # fmt: skip
        assert len(colours) == 1 and report_charts.FAILED not in colours
    assert report_charts.FAILED not in {*embedding_chart.GROUPS, *report_charts.ACCENTS}


def test_a_centre_never_has_the_colour_of_a_class(figures, tmp_path):
    data = cohort(slides=1, patches=3, classes=5, centers=4)
    save_embedding(str(tmp_path), open_dataset("mine", data.write(tmp_path / "m.csv")), embed(data.x), 0)
    draw_embedding(load_embedding(str(tmp_path), "mine", 0), "title")
    left, right = (
        {(handle.get_color(), handle.get_marker()) for handle in axes.get_legend().legend_handles}
        for axes in figures[0].axes
    )
    assert len(left) == 5 and len(right) == 4 and not left & right


@pytest.mark.parametrize("names", [["a"], ["a" * 60] * 1, [f"hospital number {i} of a long name" for i in range(8)]])
def test_no_legend_or_title_leaves_the_picture(figures, names):
    rows = [row(i) for i in (0, 100)]
    for name in names:
        rows = [r | {k.replace("__", "/"): v for k, v in scores(name).items()} for r in rows]
    draw_robustness([*rows, row(200, "failed", "boom"), row(300, "dropped")], "run", best_images=100)
    figure = figures[0]
    figure.canvas.draw()
    width, height = figure.bbox.width, figure.bbox.height
    key = figure.legends[0].get_window_extent()
    assert 0 <= key.x0 and key.x1 <= width and key.y1 <= height
    top = max(axes.title.get_window_extent().y1 for axes in figure.axes)
    assert top < key.y0 + 2
    lefts = [axes._left_title.get_window_extent() for axes in figure.axes]
    assert all(a.x1 <= b.x0 or a.y0 > b.y1 for a, b in zip(lefts, lefts[1:], strict=False) if b.x0 > a.x0)


def test_pictures_say_what_is_seen_and_can_be_enlarged(tmp_path):
    run = write(tmp_path / "run", [row(0, **scores(ri=0.5)), row(100, **scores(ri=0.75))])
    text = open(write_report(run)).read()
    (alt,) = re.findall(r'<img alt="([^"]*)"', text)
    assert "Robustness index on camelyon 0.500 to 0.750" in alt and "images seen" in alt
    assert text.count('<input type="checkbox"') == 1 and "input:checked + span" in text
    assert "@media (max-width: 700px)" in text and "<script" not in text


def test_the_first_groups_of_an_embedding_have_no_colour_of_a_datasets_line():
    assert not {*embedding_chart.GROUPS[:6]} & {*report_charts.ACCENTS}
    assert len({*embedding_chart.GROUPS}) == 12
