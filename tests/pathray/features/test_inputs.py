import os

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from pathray.errors import MissingFile, UserError
from pathray.features.inputs import images_in, images_of, slides_in
from pathray.store.storage import StorageError, file_state


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def test_slides_of_a_folder_are_found_by_suffix_at_any_depth_in_a_fixed_order(tmp_path):
    touch(tmp_path, "b.svs", "a.TIFF", "deep/er/a.ndpi", "notes.txt", ".hidden.svs", ".cache/c.svs", "m/Slidedat.ini")
    touch(tmp_path, "m.mrxs", "bad.sdpc", "dicom/1.dcm", "dicom/2.dcm")
    root = str(tmp_path)
    assert slides_in(root + "/") == [
        ("a", f"{root}/a.TIFF"),
        ("b", f"{root}/b.svs"),
        ("bad", f"{root}/bad.sdpc"),
        ("deep__er__a", f"{root}/deep/er/a.ndpi"),
        ("dicom", f"{root}/dicom"),
        ("m", f"{root}/m.mrxs"),
    ]


def test_a_folder_that_is_not_there_and_one_without_slides_are_told_apart(tmp_path):
    touch(tmp_path, "a.txt")
    with pytest.raises(UserError, match=r"no slides.*1 files"):
        slides_in(str(tmp_path))
    with pytest.raises(UserError, match="no images"):
        images_in(str(tmp_path))
    for look in (slides_in, images_in):
        with pytest.raises(MissingFile, match="no such folder"):
            look(str(tmp_path / "none"))


def test_images_of_a_folder_are_named_from_there(tmp_path):
    touch(tmp_path, "b/2.jpg", "a/1.PNG", "a/thumbs.db", "c.tiff")
    listed = images_in(str(tmp_path))
    assert listed.names == ("a/1.PNG", "b/2.jpg", "c.tiff")
    assert listed.paths[0] == str(tmp_path / "a" / "1.PNG") and listed.metadata == {}


@pytest.mark.parametrize(("name", "tab"), [("list.csv", ","), ("index.tsv", "\t")])
def test_a_list_carries_its_other_columns_and_resolves_paths(tmp_path, name, tab):
    rows = [["path", "organ"], ["i/1.png", "skin"], ["/abs/2.png", ""], ["gs://b/3.png", "lung"]]
    (tmp_path / name).write_text("\n".join(tab.join(row) for row in rows) + "\n", encoding="utf-8-sig")
    listed = images_of(str(tmp_path / name))
    assert listed.names == ("i/1.png", "/abs/2.png", "gs://b/3.png")
    assert listed.paths == (str(tmp_path / "i/1.png"), "/abs/2.png", "gs://b/3.png")
    assert listed.metadata == {"organ": ("skin", None, "lung")}
    assert images_of(str(tmp_path / name), root="/other").paths[0] == "/other/i/1.png"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("file,organ\na.png,skin\n", "key: path"),
        ("path,x,x\na.png,1,2\n", "duplicate column"),
        ("path,features\na.png,1\n", "reserved name"),
        ("path\n", "no images"),
        ("path,x\na.png,1\n,2\n", "row: 3"),
        ("path\na.png,1\n", "row: 2"),
        ('path\n"a.png\n', "not valid"),
        ("path;organ\na.png;skin\n", "one column only: wrong separator.*semicolon"),
        ("# mine\n\npath,x\na.png,1,2\n", "row: 4"),
        ("", "the list is empty"),
        ("path\na.png\nb.png\n./a.png\n", "twice.*row: 4.*also in row 2"),
        ("path\nhttps://host/a.png?sig=s3c\n", "a login or a signature.*row: 2"),
    ],
)
def test_a_list_that_will_not_do_is_refused_with_the_place(tmp_path, text, said):
    (tmp_path / "l.csv").write_text(text)
    with pytest.raises(UserError, match=said):
        images_of(str(tmp_path / "l.csv"), reserved=("path", "features"))
    with pytest.raises(MissingFile):
        images_of(str(tmp_path / "none.csv"))


def test_a_files_state_changes_when_it_does(tmp_path):
    touch(tmp_path, "d/a.dcm", "d/b.dcm")
    file, folder = str(tmp_path / "d/a.dcm"), str(tmp_path / "d")
    before = file_state(file), file_state(folder)
    assert before == (file_state(file), file_state(folder))
    os.utime(file, (1, 1))
    assert file_state(file) != before[0] and file_state(folder) != before[1]
    with pytest.raises(MissingFile):
        file_state(str(tmp_path / "none"))


def test_files_that_are_no_slides_are_counted_and_named(tmp_path, caplog):
    for name in ("a.svs", "b.mrxs", "b/Slidedat.ini", "b/Data0001.dat", "notes.txt", "scan.qptiff", "photo.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert [slide_id for slide_id, _ in slides_in(str(tmp_path))] == ["a", "b"]
    assert "3 files skipped because they are not slides" in caplog.text
    assert (
        all(name in caplog.text for name in ("notes.txt", "scan.qptiff", "photo.jpg")) and "Slidedat" not in caplog.text
    )


def test_a_comment_on_top_of_a_list_is_one(tmp_path):
    (tmp_path / "l.csv").write_text("# mine\n#\npath,organ\na.png, skin \n\nb.png\n")
    listed = images_of(str(tmp_path / "l.csv"))
    assert listed.names == ("a.png", "b.png") and listed.metadata == {"organ": ("skin", None)}


def test_a_pipe_given_as_a_list_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "l.csv")
    with pytest.raises(UserError, match="pipe"):
        images_of(str(tmp_path / "l.csv"))


def test_a_listing_that_fails_is_an_error_that_names_the_folder_without_its_signature(monkeypatch):
    def refuse(self, path):
        raise ConnectionError(f"refused: {path}?X-Amz-Signature=SECRET")

    monkeypatch.setattr(MemoryFileSystem, "isdir", refuse)
    with pytest.raises(StorageError, match="cannot read.*memory://tiles") as e:
        images_in("memory://tiles")
    assert "SECRET" not in str(e.value) and e.value.__suppress_context__
