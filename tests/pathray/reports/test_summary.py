"""summary.md: what a job did, in a form that a person reads, and that gives nothing away."""

from pathlib import Path

from pathray.reports.summary import EXAMPLES, HEAD, PICTURES, Picture, Summary, counts, write_summary


def written(folder: Path, summary: Summary) -> str:
    assert write_summary(str(folder), summary) == f"{folder}/summary.md"
    return (folder / "summary.md").read_text()


def test_what_failed_is_grouped_by_reason_with_counts_and_the_first_examples(tmp_path):
    coarse = [(f"s{i}", f"too coarse: {i}.97 µm (file: '/data/s {i}.svs')") for i in range(7)]
    text = written(
        tmp_path, Summary("Slides", {"slides": 9}, failed=[("x", "no spacing"), *coarse, ("y", "a|b\n## c")])
    )
    assert "### Failed (9)" in text
    lines = text.splitlines()
    start = lines.index(r"- 7 × too coarse: … µm (file: …)")
    assert lines[start + 1] == "  - `s0`: too coarse: 0.97 µm (file: '/data/s 0.svs')"
    assert lines[start + 1 + EXAMPLES] == f"  - and {7 - EXAMPLES} more"
    assert "- 1 × no spacing\n  - `x`\n" in text and r"- 1 × a\|b ## c" in text


def test_reasons_beyond_the_limit_are_counted(tmp_path):
    units = [(f"s{i}", f"reason {chr(97 + i)}") for i in range(26)]
    assert "- 16 more for 16 other reasons" in written(tmp_path, Summary("Slides", {}, failed=units))


def test_a_rerun_replaces_its_own_section_and_no_other(tmp_path):
    written(tmp_path, Summary("Slide index", {"slides": 3}))
    written(tmp_path, Summary("Anchors", {"anchors": 1422}))
    text = written(tmp_path, Summary("Slide index", {"slides": 4}))
    assert text.startswith(HEAD) and text.count("## Slide index") == text.count("## Anchors") == 1
    assert "| slides | 4 |" in text and "| slides | 3 |" not in text and "| anchors | 1,422 |" in text
    assert text.index("## Slide index") < text.index("## Anchors")


def test_a_rerun_with_nothing_new_leaves_the_file_alone(tmp_path, monkeypatch):
    before = written(tmp_path, Summary("Slide index", {"slides": 3}))
    monkeypatch.setattr("pathray.reports.summary.time.strftime", lambda *_: "2099-01-01 00:00")
    assert written(tmp_path, Summary("Slide index", {"slides": 3})) == before
    after = written(tmp_path, Summary("Slide index", {"slides": 4}))
    assert "| written | 2099-01-01 00:00 |" in after


def test_no_login_and_no_signature_is_in_it(tmp_path):
    url = "https://anna:pw1@host/a.svs?X-Amz-Signature=pw2"
    text = written(
        tmp_path,
        Summary(
            "Slides", {"input": url}, {"tracking": url}, [("a", f"cannot open {url}")], [(url, "password=pw3")],
            files={"slide": url}, pictures=[Picture(url, url, {"of": url})],
        ),
    )  # fmt: skip
    assert not any(f"pw{i}" in text for i in (1, 2, 3)) and "https://host/a.svs" in text


def test_links_are_relative_to_the_folder_and_work_with_any_name(tmp_path):
    name = "a b (1) #2.png"
    shown = Picture(str(tmp_path / "thumbnails" / name), "S_1", {"GeoJSON": str(tmp_path / "qupath" / "x.geojson")})
    text = written(tmp_path, Summary("Slides", {}, files={"report": str(tmp_path.parent / "r.csv")}, pictures=[shown]))
    assert "![S_1](thumbnails/a%20b%20%281%29%20%232.png)" in text
    assert "[GeoJSON](qupath/x.geojson)" in text and "[report](../r.csv)" in text


def test_pictures_beyond_the_limit_are_counted(tmp_path):
    many = [Picture(str(tmp_path / "thumbnails" / f"{i}.png"), f"s{i}") for i in range(PICTURES + 5)]
    text = written(tmp_path, Summary("Slides", {}, pictures=many))
    assert text.count("![") == PICTURES and "and 5 more in [thumbnails](thumbnails)" in text


def test_a_folder_in_a_bucket_has_relative_links_too(tmp_path):
    summary = Summary("Slides", {}, files={"report": "memory://bucket/out/report.csv"})
    write_summary("memory://bucket/out", summary)
    from pathray.store.storage import Storage

    assert b"[report](report.csv)" in Storage.of("memory://bucket/out").read_bytes("summary.md")


def test_counts_are_by_frequency():
    assert list(counts(["ok", "failed", "ok", ""]).items()) == [("ok", 2), ("failed", 1)]


def test_a_summary_of_somebody_elses_is_left_alone(tmp_path):
    (tmp_path / "summary.md").write_text("# Summary\n\nmy own notes\n")
    for facts in ({"slides": 1}, {"slides": 2}):
        assert write_summary(str(tmp_path), Summary("Slides", facts)) == f"{tmp_path}/pathray_summary.md"
    assert (tmp_path / "summary.md").read_text() == "# Summary\n\nmy own notes\n"
    text = (tmp_path / "pathray_summary.md").read_text()
    assert text.startswith(HEAD) and text.count("## Slides") == 1 and "| slides | 2 |" in text
