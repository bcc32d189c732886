"""summary.md next to a job's outputs: what was done, skipped and failed and why, the settings, the pictures.

A folder has one such file. Each job has a section in it, which its next start replaces. Logins and signatures of URLs
are taken out. Not here: what a job has to say, and the report with a line per unit (pathray.reports.units).
"""

from __future__ import annotations

import os
import re
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import quote

from pathray.errors import MissingFile
from pathray.store.storage import Storage
from pathray.urls import is_url, local_path, public_text

NAME, OTHER_NAME = "summary.md", "pathray_summary.md"
HEAD = "# Summary\n\nPathray writes this file. Each job has a section, which its next start replaces."
WRITTEN = "written"
REASONS, EXAMPLES, PICTURES, LETTERS = 10, 3, 24, 400
_VARYING = re.compile(r"'[^']*'|\S*[/\\]\S*|\d[\d.,]*")  # quoted texts, paths, numbers: they differ within a reason

Unit = tuple[str, str]  # its name and what there is to say of it


@dataclass(frozen=True)
class Picture:
    """A picture at `path`, what it shows, and files that belong to it by what they are."""

    path: str
    caption: str
    files: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Summary:
    """A section. `title` says which: two jobs of one folder differ in it. Paths become links relative to the folder.

    `failed`, `skipped` and `notes` are shown by reason with counts and the first examples. `pictures` beyond a limit
    are only counted.
    """

    title: str
    facts: Mapping[str, object]
    settings: Mapping[str, object] = field(default_factory=dict)
    failed: Sequence[Unit] = ()
    skipped: Sequence[Unit] = ()
    notes: Sequence[Unit] = ()
    files: Mapping[str, str] = field(default_factory=dict)
    pictures: Sequence[Picture] = ()

    def text(self, folder: str) -> str:
        """The section as Markdown for a file in `folder`."""
        parts = [f"## {_plain(self.title)}", _table(self.facts)]
        for heading, units in (("Failed", self.failed), ("Skipped", self.skipped), ("Worth a look", self.notes)):
            if units:
                parts += [f"### {heading} ({len(units):,})", _reasons(units)]
        if self.settings:
            parts += ["### Settings", _table(self.settings)]
        if self.files:
            parts += ["### Files", "\n".join(f"- {_link(name, to, folder)}" for name, to in self.files.items())]
        if self.pictures:
            parts += ["### Pictures", _pictures(self.pictures, folder)]
        return "\n\n".join(parts)


def counts(statuses: Iterable[str]) -> dict[str, object]:
    """How many units have each status, the most frequent first; none has none."""
    return {status: number for status, number in Counter(statuses).most_common() if status}


def write_summary(folder: str, summary: Summary) -> str:
    """Put the section into `folder`/summary.md (pathray_summary.md where that is somebody else's file), whole or not
    at all, in place of an earlier one of its title; the file's path. A section that says nothing new leaves the file as
    it is. StorageError when it cannot be written."""
    store = Storage.of(folder)
    at = time.strftime("%Y-%m-%d %H:%M", time.localtime())
    own = replace(summary, facts={**summary.facts, WRITTEN: at}).text(store.url)
    name = NAME if _is_ours(store) else OTHER_NAME
    sections, title = _sections(store, name), own.partition("\n")[0]
    if _drop_date(sections.get(title, "")) == _drop_date(own):
        return store.join(name)
    sections[title] = own
    store.write_bytes(name, "\n\n".join([HEAD, *sections.values()]).encode() + b"\n")
    return store.join(name)


def _is_ours(store: Storage) -> bool:
    """Whether summary.md is free or was written here: a user's own file of that name stays as it is."""
    try:
        return store.read_bytes(NAME).startswith(HEAD.encode())
    except MissingFile:
        return True


def _drop_date(section: str) -> str:
    return re.sub(rf"^\| {WRITTEN} \| .* \|$", "", section, flags=re.MULTILINE)


def _sections(store: Storage, name: str) -> dict[str, str]:
    """The sections of the file that is there, by their first line; none where it is not ours."""
    try:
        text = store.read_bytes(name).decode(errors="replace")
    except MissingFile:
        return {}
    if not text.startswith(HEAD):
        return {}
    found = (part.strip() for part in re.split(r"^(?=## )", text.removeprefix(HEAD), flags=re.MULTILINE))
    return {part.partition("\n")[0]: part for part in found if part}


def _reasons(units: Sequence[Unit]) -> str:
    """A list of reasons, the most frequent first, with the first units of each."""
    groups: dict[str, list[Unit]] = {}
    for name, why in units:
        groups.setdefault(_VARYING.sub("…", " ".join(why.split())), []).append((name, why))
    ordered, lines = sorted(groups.items(), key=lambda group: -len(group[1])), list[str]()
    for reason, members in ordered[:REASONS]:
        alike = {why for _, why in members}
        lines.append(f"- {len(members):,} × {_plain(alike.pop() if len(alike) == 1 else reason)}")
        varies = len(members) > 1 and bool(alike)
        lines += [f"  - {_code(name)}" + (f": {_plain(why)}" if varies else "") for name, why in members[:EXAMPLES]]
        if len(members) > EXAMPLES:
            lines.append(f"  - and {len(members) - EXAMPLES:,} more")
    if left := sum(len(members) for _, members in ordered[REASONS:]):
        lines.append(f"- {left:,} more for {len(ordered) - REASONS:,} other reasons")
    return "\n".join(lines)


def _pictures(pictures: Sequence[Picture], folder: str) -> str:
    parts = []
    for one in pictures[:PICTURES]:
        files = " · ".join(_link(name, to, folder) for name, to in one.files.items())
        below = _plain(one.caption) + (f" ({files})" if files else "")
        parts.append(f"![{_plain(one.caption)}]({_target(one.path, folder)})\n\n{below}")
    if len(pictures) > PICTURES:
        where = os.path.dirname(pictures[0].path)
        parts.append(f"and {len(pictures) - PICTURES:,} more in {_link(os.path.basename(where), where, folder)}")
    return "\n\n".join(parts)


def _table(values: Mapping[str, object]) -> str:
    lines = [f"| {_plain(name)} | {_plain(_format(value))} |" for name, value in values.items()]
    return "\n".join(["| | |", "|---|---|", *lines])


def _format(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "–"}[value]
    if isinstance(value, float):
        return f"{value:,.5g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _link(name: str, path: str, folder: str) -> str:
    return f"[{_plain(name)}]({_target(path, folder)})"


def _target(path: str, folder: str) -> str:
    """A link's target: relative to `folder` where that is possible."""
    inside = path.removeprefix(f"{folder.rstrip('/')}/")
    if inside == path and is_url(path):
        return public_text(path)
    if inside == path and not is_url(folder):
        inside = os.path.relpath(os.path.abspath(local_path(path)), os.path.abspath(local_path(folder)))
    return quote(inside)


def _code(text: str) -> str:
    return f"`{_short(text).replace('`', chr(39))}`" if text else "(no id)"


def _plain(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    return re.sub(r"([\\`*\[\]|<>])", r"\\\1", _short(text))


def _short(text: str) -> str:
    line = " ".join(public_text(text).split())
    return line if len(line) <= LETTERS else f"{line[:LETTERS]}…"
