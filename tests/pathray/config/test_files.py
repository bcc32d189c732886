"""Files that are no configs are refused in a moment, with the line where it is known."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from yaml import YAMLError

from pathray.config.load import load_config
from pathray.errors import UserError


@dataclass
class Inner:
    lr: float = 0.1


@dataclass
class Schema:
    seed: int = 0
    tag: str = ""
    genes: list[str] = field(default_factory=list)
    inner: Inner = field(default_factory=Inner)


def refused(path: Path, content: str | bytes) -> UserError:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as e:
        load_config(Schema, ["--config", str(path)], configs_dir=path.parent)
    assert str(e.value.where["file"]) == str(path) and "Written(" not in str(e.value)
    return e.value


def bomb(levels: int, each: int) -> str:
    first = "a0: &a0 [x]\n"
    return first + "".join(f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * each)}]\n" for k in range(1, levels))


@pytest.mark.parametrize(
    ("content", "words", "row"),
    [
        ("seed: " + "[" * 5000 + "]" * 5000, "nested too deep", 1),
        ("\n".join(" " * i + "a:" for i in range(2000)), "nested too deep", 51),
        ("inner: " + "{a: " * 200 + "1" + "}" * 200, "nested too deep", 1),
        (bomb(9, 9), "aliases make the config file too large", 5),
        (bomb(40, 2), "aliases make the config file too large", 12),
        ("inner: &a {lr: *a}\n", "recursive aliases", 1),
        ("inner: *none\n", "undefined alias", 1),
        ("- seed\n- 3\n", "config file must be a mapping.*'a list'", 1),
        ("# x\n\n[seed, 3]\n", "config file must be a mapping.*'a list'", 3),
        ("1e3\n", "config file must be a mapping.*'a single value'", 1),
        ("just a text\n", "config file must be a mapping.*'a single value'", 1),
        ("", "the config file is empty", None),
        ("# only this\n", "the config file is empty", None),
        ("---\n...\n", "the config file is empty", 2),
        ("~\n", "the config file is empty", 1),
        ("inner: {lr: 1, lr: 2}\n", "duplicate key lr", 1),
        ("seed: 1\ninner:\n  lr: 3\nseed: 2\n", "duplicate key seed", 4),
        ("inner:\n\tlr: 1\n", "spaces, not tabs", 2),
        ("seed: 1\n  tag: a\n", "invalid YAML", 2),
        ("seed: 1\n---\nseed: 2\n", "another document", 2),
        ("tag: !!python/object/apply:os.getcwd []\n", "constructor", 1),
        ("seed: " + "9" * 5000 + "\n", "invalid YAML", None),
        (b"seed: 1\ntag: caf\xe9\n", "not UTF-8", 2),
        (b"\x89PNG\r\n\x1a\n" + bytes(99), "not UTF-8", 1),
        ("seed: 1\n".encode("utf-16"), "UTF-16", None),
        (b"seed: 1\ntag: a\x00b\n", "zero byte", 2),
        (b"seed: 1\ntag: a\x07b\n", "characters are not allowed", 2),
    ],
)
def test_what_is_no_config_is_refused_with_its_line(tmp_path, content, words, row):
    error = refused(tmp_path / "run.yaml", content)
    assert re.search(words, str(error)) and error.where["row"] == row, error


def test_a_folder_or_a_pipe_given_as_a_config_is_refused_at_once(tmp_path):
    (tmp_path / "a.yaml").mkdir()
    os.mkfifo(tmp_path / "b.yaml")
    for name, found in (("a.yaml", "a folder"), ("b.yaml", "a pipe")):
        with pytest.raises(UserError, match=f"not a regular file.*{name}.*{found}"):
            load_config(Schema, ["--config", str(tmp_path / name)], configs_dir=tmp_path)


def test_long_lists_and_a_few_aliases_are_read(tmp_path, monkeypatch):
    """A list may be longer than OmegaConf reads by itself, and than what aliases may repeat: ten thousand of either."""
    monkeypatch.setenv("OMEGACONF_MAX_YAML_EXPANDED_NODES", "1000")
    monkeypatch.setattr("pathray.config.files.MAX_REPEATED", 1000)
    genes = [f"G{i}" for i in range(1100)]
    with pytest.raises(YAMLError, match="1000"):
        OmegaConf.create(f"[{', '.join(genes)}]")
    (tmp_path / "run.yaml").write_text(f"genes: [{', '.join(genes)}]\n")
    assert load_config(Schema, ["--config", str(tmp_path / "run.yaml")], configs_dir=tmp_path).config.genes == genes
    (tmp_path / "run.yaml").write_text("genes: [&g a, *g, *g]\n")
    loaded = load_config(Schema, ["--config", str(tmp_path / "run.yaml")], configs_dir=tmp_path)
    assert loaded.config.genes == ["a", "a", "a"]


@pytest.mark.parametrize(
    "text", ["[" * 3000 + "]" * 3000, "{a: " * 1000 + "1" + "}" * 1000, "9" * 5000, "[1", "{a: *b}"]
)
def test_values_of_the_command_line_that_cannot_be_read_are_named(tmp_path, text):
    with pytest.raises(UserError, match="key: seed"):
        load_config(Schema, [f"seed={text}"], configs_dir=tmp_path)


def test_a_key_without_a_value_is_told_so(tmp_path):
    with pytest.raises(UserError, match=r"the key has no value.*key: seed.*expected: 'int'"):
        load_config(Schema, ["seed="], configs_dir=tmp_path)
