import os

import pytest

from ijepath.indexing.manifest import read_manifest
from pathray.errors import MissingFile, UserError


def write(folder, text, name="slides.csv", encoding="utf-8"):
    path = folder / name
    path.write_bytes(text.encode(encoding))
    return str(path)


def test_rows_keep_file_order_line_numbers_and_free_columns(tmp_path):
    path = write(tmp_path, 'slide_id,organ,wsi_path,mask_path,site\nb,lung,b.svs,,"x, y"\n\na,,/abs/a.svs,m/a.png,\n')
    manifest = read_manifest(path)
    first, second = manifest
    assert manifest.metadata_columns == ("organ", "site")
    assert (first.number, first.slide_id, first.mask_path, first.metadata) == (
        2,
        "b",
        "",
        {"organ": "lung", "site": "x, y"},
    )
    assert (second.number, second.metadata) == (4, {"organ": None, "site": None})


def test_relative_paths_resolve_against_the_manifests_own_folder(tmp_path, monkeypatch):
    folder = tmp_path / "manifests"
    folder.mkdir()
    path = write(folder, "slide_id,wsi_path,mask_path\na,../wsi/a.svs,gs://bucket/a.png\n")
    monkeypatch.chdir(folder)
    for given in (path, "slides.csv"):
        (row,) = read_manifest(given)
        assert row.wsi_path == str(tmp_path / "wsi" / "a.svs")
        assert row.mask_path == "gs://bucket/a.png"


def test_a_manifest_at_a_url_resolves_against_the_url():
    import fsspec

    with fsspec.open("memory://cohort/manifests/slides.csv", "wb") as f:
        f.write(b"slide_id,wsi_path,mask_path\na,../wsi/a.svs,\n")
    (row,) = read_manifest("memory://cohort/manifests/slides.csv")
    assert row.wsi_path == "memory://cohort/wsi/a.svs"


def test_a_byte_order_mark_and_spaces_do_no_harm(tmp_path):
    path = write(tmp_path, "slide_id, wsi_path ,mask_path,mpp\na , /a.svs, ,0.25\n", encoding="utf-8-sig")
    (row,) = read_manifest(path)
    assert (row.slide_id, row.wsi_path, row.mask_path, row.mpp, row.error) == ("a", "/a.svs", "", 0.25, "")


@pytest.mark.parametrize("column", ["slide_id", "wsi_path", "mask_path"])
def test_a_missing_column_is_named_with_what_was_found(tmp_path, column):
    names = [c for c in ("slide_id", "wsi_path", "mask_path") if c != column]
    path = write(tmp_path, ",".join(names) + "\na,b\n")
    with pytest.raises(UserError) as caught:
        read_manifest(path)
    where = caught.value.where
    assert (where["file"], where["key"], where["found"]) == (path, column, ",".join(names))
    assert where["expected"] == "slide_id,wsi_path,mask_path"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        ("slide_id,wsi_path,mask_path\n", "no slides"),
        ("slide_id,wsi_path,mask_path,organ,organ\na,b,c,d,e\n", "duplicate column"),
        ("slide_id,wsi_path,mask_path,\na,b,c,d\n", "no name"),
        ("slide_id,wsi_path,mask_path,status\na,b,c,d\n", "rename"),
        ('slide_id,wsi_path,mask_path\na,"b"x,c\n', "not valid CSV"),
        ("slide_id;wsi_path;mask_path\na;b;c\n", "one column only: wrong separator.*semicolon"),
        ("# mine\n\nslide_id\twsi_path\tmask_path\na\tb\tc\n", "wrong separator.*tab.*row: 3"),
    ],
)
def test_an_unusable_manifest_is_a_user_error_that_names_the_file(tmp_path, text, message):
    path = write(tmp_path, text)
    with pytest.raises(UserError, match=message) as caught:
        read_manifest(path, reserved=("status", "slide_id"))
    assert caught.value.where["file"] == path


def test_a_missing_manifest_is_a_missing_file(tmp_path):
    with pytest.raises(MissingFile, match="nowhere.csv"):
        read_manifest(str(tmp_path / "nowhere.csv"))


def test_a_manifest_of_another_encoding_is_refused(tmp_path):
    with pytest.raises(UserError, match="UTF-8"):
        read_manifest(write(tmp_path, "slide_id,wsi_path,mask_path\nä,b,c\n", encoding="latin-1"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a,c.svs,", "duplicate slide_id: 'a' in row 3 is already in row 2"),
        ("A,c.svs,", "duplicate slide_id: 'A' in row 3 is already in row 2, spelt 'a'"),
        ("b,,", "row 3 has no wsi_path"),
        (",c.svs,", "row 3 has no slide_id"),
        ("b,c.svs", "row 3 has 2 cells, the header 4"),
        ("b,c.svs,,fine", "row 3: mpp is 'fine'"),
        ("b,c.svs,,-0.5", "row 3: mpp is '-0.5'"),
        ("b,c.svs,,0_5", "row 3: mpp is '0_5'"),
        ('b,c.svs,,"0,5"', "row 3: mpp is '0,5'"),
    ],
)
def test_what_spoils_one_row_stays_with_that_row(tmp_path, line, message):
    if line.count(",") == 2:
        line += ","
    path = write(tmp_path, f"slide_id,wsi_path,mask_path,mpp\na,a.svs,,\n{line}\nz,z.svs,,\n")
    rows = read_manifest(path).rows
    assert [bool(r.error) for r in rows] == [False, True, False]
    assert message in rows[1].error


SIGNED = (
    "https://host/b/x.svs?X-Amz-Credential=a&X-Amz-Signature=s3cret",
    "https://storage.googleapis.com/b/x.svs?GoogleAccessId=a&Expires=1&Signature=s3cret",
    "https://account.blob.core.windows.net/c/x.svs?sv=2020&sig=s3cret",
    "s3://AKIA:s3c/ret@bucket/x.svs",
    "https://s3cret@host/x.svs",
)
PLAIN = (
    "gs://bucket/x.svs",
    "s3://bucket/a:b@c.svs",
    "http://host:8080/x@y.svs",
    "abfs://container@account.dfs.core.windows.net/x.svs",
    "https://host/x.svs?versionId=3&design=4",
    "/data/a?token=b.svs?",
)


@pytest.mark.parametrize("column", ["wsi_path", "mask_path", "thumbnail"])
@pytest.mark.parametrize("url", SIGNED)
def test_a_url_with_a_secret_in_it_is_refused_without_telling_the_secret(tmp_path, column, url):
    cells = {"slide_id": "b", "wsi_path": "b.svs", "mask_path": "", "thumbnail": ""} | {column: url}
    path = tmp_path / "slides.csv"
    path.write_text(f"{','.join(cells)}\na,a.svs,,\n{','.join(cells.values())}\n")
    with pytest.raises(UserError, match="environment") as e:
        read_manifest(str(path))
    assert (e.value.where["file"], e.value.where["row"], e.value.where["key"]) == (str(path), 3, column)
    assert "s3c" not in str(e.value)


def test_urls_without_secrets_are_taken(tmp_path):
    path = tmp_path / "slides.csv"
    path.write_text("slide_id,wsi_path,mask_path\n" + "".join(f"{i},{url},\n" for i, url in enumerate(PLAIN)))
    assert [row.wsi_path for row in read_manifest(str(path))] == list(PLAIN)


def test_comments_on_top_are_skipped_and_rows_keep_their_lines(tmp_path):
    found = read_manifest(write(tmp_path, "# cohort 7\n#\nslide_id,wsi_path,mask_path\n\n007,a.svs,\n"))
    assert [(row.slide_id, row.number) for row in found] == [("007", 5)]


def test_a_pipe_or_a_folder_given_as_a_manifest_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(UserError, match="pipe.*expected: 'CSV"):
        read_manifest(str(tmp_path / "pipe.csv"))
    with pytest.raises(UserError, match="a folder"):
        read_manifest(str(tmp_path))
