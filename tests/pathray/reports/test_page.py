"""Pages from templates: what is escaped, what is missing, what a page needs from elsewhere."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest
from jinja2 import UndefinedError

from pathray.reports.page import TEMPLATES, PagePicture, render_page

EVIL = ["<img onerror=alert(1)>", 'a"onerror="alert(1)', "</title><script>alert(1)</script>", "{{ 7 * 7 }}", "&lt;"]


class Parsed(HTMLParser):
    """The tags, the attributes and the text of a page as a browser reads them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data


def write_template(folder, body):
    lines = ['{% extends "page.html.j2" %}', '{% from "figure.html.j2" import figure %}', body]
    (folder / "own.html.j2").write_text("\n".join(lines))
    return "own.html.j2"


@pytest.mark.parametrize("name", EVIL)
def test_names_of_others_are_text_and_no_markup(tmp_path, name):
    own = write_template(
        tmp_path,
        "{% block title %}{{ name }}{% endblock %}{% block body %}<p>{{ name }}</p>{{ figure(picture) }}{% endblock %}",
    )
    picture = PagePicture("data:image/png;base64,AA+/==", f"seen: {name}", f"caption {name}")
    parsed = Parsed(render_page(own, {"name": name, "picture": picture}, tmp_path))
    plain = Parsed(render_page(own, {"name": "a", "picture": PagePicture("data:", "a", "a")}, tmp_path))
    assert parsed.tags == plain.tags
    assert [key for key, _ in parsed.attributes] == [key for key, _ in plain.attributes]
    assert ("alt", f"seen: {name}") in parsed.attributes and ("src", picture.source) in parsed.attributes
    assert parsed.text.count(name) == 4  # title, heading, paragraph, caption


def test_a_value_that_a_template_misses_is_an_error(tmp_path):
    own = write_template(tmp_path, "{% block body %}{{ absent }}{% endblock %}")
    with pytest.raises(UndefinedError, match="absent"):
        render_page(own, {}, tmp_path)


def test_a_picture_without_a_caption_has_no_line_below_it(tmp_path):
    own = write_template(tmp_path, "{% block body %}{{ figure(picture) }}{% endblock %}")
    page = render_page(own, {"picture": PagePicture("data:", "a", "")}, tmp_path)
    assert "figcaption" not in Parsed(page).tags and "figure" in Parsed(page).tags


def test_templates_load_nothing_from_elsewhere():
    for path in TEMPLATES.iterdir():
        text = path.read_text()
        assert "http" not in text and "<script" not in text and "|safe" not in text.replace(" ", ""), path.name
