"""The pages of this project, made from templates: one file each, without scripts, readable without a network.

Every value that a template shows is escaped: names of slides, folders and datasets are text and never markup.
Not here: what a page says (pathray.evaluation.report, demo.summary).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class PagePicture:
    """A picture for the macro `figure`: its data URI, what is seen on it for those who do not see it, and a caption."""

    source: str
    alt: str
    caption: str


def render_page(template: str, values: Mapping[str, object], folder: Path = TEMPLATES) -> str:
    """The text of the page that `template` in `folder` makes of `values`. A value that it misses is an error."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader([folder, TEMPLATES]),
        autoescape=True,  # not by the file's ending: ours end with .j2
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(values)
