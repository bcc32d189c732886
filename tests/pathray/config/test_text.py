"""A text key is the text as it was written, in every layer, list and map; numbers and booleans stay what they are."""

from dataclasses import dataclass, field
from typing import Any

import pytest
import yaml

from pathray.config.load import Loaded, load_config

TEXTS = [
    "1e3",
    "007",
    "12:30",
    "no",
    "on",
    "2024-01-01",
    "2024_01",
    "0x10",
    "1_000",
    "1.10",
    ".5",
    "01",
    "true",
    "3",
    "1:2:3",
]


@dataclass
class Inner:
    tag: str = "a"
    share: float = 0.5


@dataclass
class Schema:
    text: str = "a"
    maybe: str | None = None
    texts: list[str] = field(default_factory=list)
    named: dict[str, str] = field(default_factory=dict)
    lists: dict[str, list[str]] = field(default_factory=dict)
    inner: Inner = field(default_factory=Inner)
    many: list[Inner] = field(default_factory=list)
    weights: Any = None
    number: float = 0.0
    count: int = 0
    flag: bool = False


def load(tmp_path, *argv: str, text: str = "") -> Loaded[Schema]:
    files = []
    if text:
        (tmp_path / "run.yaml").write_text(text)
        files = ["--config", str(tmp_path / "run.yaml")]
    return load_config(Schema, [*files, *argv], configs_dir=tmp_path)


def found(config: Schema) -> list[Any]:
    texts = [config.text, config.maybe, config.texts, config.named, config.lists]
    return [*texts, config.inner.tag, [one.tag for one in config.many]]


@pytest.mark.parametrize("written", TEXTS)
def test_texts_in_a_file_and_on_the_command_line_are_what_was_written(tmp_path, written):
    w = written
    expected = [w, w, [w, "b"], {w: w}, {"k": [w]}, w, [w]]
    block = (
        f"text: {w}\nmaybe: {w}\ntexts: [{w}, b]\nnamed: {{{w}: {w}}}\nlists:\n  k:\n  - {w}\n"
        f"inner:\n  tag: {w}\nmany:\n- tag: {w}\n"
    )
    loaded = load(tmp_path, text=block)
    assert found(loaded.config) == expected
    line = [
        f"text={w}",
        f"maybe={w}",
        f"texts=[{w}, b]",
        f"named={{{w}: {w}}}",
        f"lists={{k: [{w}]}}",
    ]
    assert found(load(tmp_path, *line, f"inner.tag={w}", f"many=[{{tag: {w}}}]").config) == expected
    again = load(tmp_path, text=loaded.yaml).config  # what a run saves is read back as the same
    assert found(again) == expected


def test_quotes_comments_anchors_and_merges_change_no_text(tmp_path):
    config = load(
        tmp_path,
        text="a: &a {tag: 1e3}\n".replace("a: &a", "inner: &a")
        + "many:\n- *a\n- {<<: *a, share: 0.25}\ntexts: ['007', 1e3]  # 12:30\n",
    ).config
    assert config.inner.tag == "1e3" and config.texts == ["007", "1e3"]
    assert config.many[0].tag == "1e3" and (config.many[1].tag, config.many[1].share) == ("1e3", 0.25)


def test_numbers_booleans_and_free_values_are_parsed_as_before(tmp_path):
    text = "number: 1e3\ncount: 1_000\nflag: on\nmaybe: ~\nweights: {a: 1e-1, no: 2}\ninner: {share: 1}\n"
    config = load(tmp_path, text=text).config
    assert (config.number, config.count, config.flag, config.maybe, config.inner.share) == (
        1000.0,
        1000,
        True,
        None,
        1.0,
    )
    assert config.weights == {"a": 0.1, "no": 2} and yaml.safe_load("on") is True
    assert load(tmp_path, "weights={a: 1, b: 0.5}").config.weights == {"a": 1, "b": 0.5}


def test_a_single_text_is_a_list_of_one(tmp_path):
    assert load(tmp_path, "texts=outputs/encoder").config.texts == ["outputs/encoder"]
    assert load(tmp_path, text="texts: 007\n").config.texts == ["007"]
