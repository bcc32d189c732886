"""ZIPs of DICOM → one file per member, in the layout of the data set: what is to be done, and one member of it.

A member goes from storage to storage as a stream; nothing is unpacked to a local disk. A member whose file is there
with its size and CRC is not read again. Not here: Ray, the report (oct.transfer.expand_report).
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa

from oct.transfer.archive import Member, read_directory
from oct.transfer.layout import Refused, Skipped, place_member
from oct.transfer.ledger import Row
from oct.transfer.member import check_member, stream_member
from oct.transfer.whole_file import check_content, write_pieces
from pathray.errors import UnreachableUnit, UnreadableUnit, UserError
from pathray.reports.units import describe
from pathray.store.storage import StorageError, file_state
from pathray.store.storage_errors import FINAL
from pathray.urls import is_url
from pathray.wsi.backends.source import open_source, retry_request

LEDGER = "_expansion"
SCHEMA = pa.schema(
    [("path", pa.string()), ("archive", pa.string()), ("member", pa.string()), ("bytes", pa.int64()),
     ("crc32", pa.int64()), ("state", pa.string()), ("status", pa.string()), ("error", pa.string())]
)  # fmt: skip
WRITTEN, KEPT, SKIPPED, FAILED = "written", "kept", "skipped", "failed"
PAUSES_S = (1.0, 4.0, 15.0)  # before further tries of a member, on average; each request has its own before
_chance = random.SystemRandom()


@dataclass(frozen=True)
class MemberJob:
    """A member and the file (path or URL) that it becomes. before: the row of an earlier start that wrote it."""

    member: Member
    target: str
    path: str  # below the output
    before: Row | None = None


@dataclass(frozen=True)
class Expansion:
    """What there is to do, and the rows of members (and archives) of which nothing becomes a file."""

    jobs: list[MemberJob]
    rows: list[Row]


def plan_expansion(
    archives: Sequence[str],
    output: str,
    known: Mapping[str, Row],
    map: Callable[[Callable[[Any], Any], Sequence[Any]], Iterable[Any]] = map,
) -> Expansion:
    """Read the directories and place every member. `known`: the ledger's rows; `map`: any ordered map."""
    jobs: dict[str, MemberJob] = {}
    rows: list[Row] = []
    for archive, (members, error) in zip(archives, map(_directory, archives), strict=True):
        if error:
            rows.append(_row(None, FAILED, error, archive=archive))
        for member in members:
            rows += _place(member, output, known, jobs)
    return Expansion(list(jobs.values()), rows)


def _directory(archive: str) -> tuple[list[Member], str]:
    try:
        return read_directory(archive), ""
    except UnreadableUnit as e:
        return [], f"{e.reason}: {e.detail}".rstrip(": ")


def _place(member: Member, output: str, known: Mapping[str, Row], jobs: dict[str, MemberJob]) -> list[Row]:
    """Add the member's job; its row instead, if it is skipped or refused."""
    try:
        path = place_member(member.archive, member.name)
        check_member(member)
    except Skipped as e:
        return [_row(member, SKIPPED, str(e))]
    except Refused as e:
        return [_row(member, FAILED, str(e))]
    except UnreadableUnit as e:
        return [_row(member, FAILED, f"{e.reason}: {e.detail}".rstrip(": "))]
    if (other := jobs.get(path)) is not None:
        is_same = (other.member.size, other.member.crc) == (member.size, member.crc)
        told = f"{other.member.name} of {other.member.archive.rpartition('/')[2]}"
        if is_same:
            return [_row(member, SKIPPED, f"a duplicate of {told}", path=path)]
        return [_row(member, FAILED, f"other content than {told}, which becomes the same file", path=path)]
    jobs[path] = MemberJob(member, f"{output.rstrip('/')}/{path}", path, known.get(path))
    return []


def expand_member(job: MemberJob) -> Row:
    """Write the file of a member, unless it is there; its row. Nothing is raised but a StorageError that will not pass
    (a full disk, a missing permission)."""
    return _through_faults(job, _expand)


def validate_member(job: MemberJob) -> Row:
    """Check that the file of a member is there with its size and CRC; its row. Nothing is written."""
    return _through_faults(job, _validate)


def lost_member(job: MemberJob, error: Exception) -> Row:
    """The row of a member on which the process died."""
    return _row(job.member, FAILED, f"writing it {error}", path=job.path)


def _expand(job: MemberJob) -> Row:
    member, row = job.member, partial(_row, job.member, path=job.path)
    state = _state(job.target)
    if state and _is_known(job, state):
        return row(KEPT, state=state)
    if state.startswith(f"{member.size}:") and not check_content(job.target, member.size, member.crc):
        return row(KEPT, state=state)
    source = open_source(member.archive)
    try:
        state = write_pieces(job.target, stream_member(source, member))
        assert state.startswith(f"{member.size}:") or not state.partition(":")[0], (state, member.size)
    finally:
        source.close()
    return row(WRITTEN, state=state)


def _validate(job: MemberJob) -> Row:
    fault = check_content(job.target, job.member.size, job.member.crc)
    return _row(job.member, FAILED if fault else KEPT, fault, path=job.path, state="" if fault else _state(job.target))


def _through_faults(job: MemberJob, act: Callable[[MemberJob], Row]) -> Row:
    """What `act` returns, tried again while storage fails; the row of a failure."""
    pauses = iter(PAUSES_S)
    while True:
        try:
            return act(job)
        except (UnreachableUnit, StorageError) as e:
            if isinstance(e, StorageError) and e.errno in FINAL:
                raise
            pause = next(pauses, None) if isinstance(e, UnreachableUnit) or e.passing else None
            if pause is None:
                return _row(job.member, FAILED, describe(e), path=job.path)
        except UnreadableUnit as e:
            return _row(job.member, FAILED, f"{e.reason}: {e.detail}".rstrip(": "), path=job.path)
        except UserError as e:
            return _row(job.member, FAILED, describe(e), path=job.path)
        time.sleep(pause * (0.5 + _chance.random()))


def _state(target: str) -> str:
    """The state of a file; "" if it is not there."""
    try:
        return retry_request(target, lambda: file_state(target)) if is_url(target) else file_state(target)
    except FileNotFoundError:
        return ""


def _is_known(job: MemberJob, state: str) -> bool:
    before = job.before
    expected = (state, job.member.size, job.member.crc)
    return before is not None and (before["state"], before["bytes"], before["crc32"]) == expected


def _row(
    member: Member | None, status: str, error: str = "", *, path: str = "", state: str = "", archive: str = ""
) -> Row:
    return {
        "path": path,
        "archive": member.archive if member else archive,
        "member": member.name if member else "",
        "bytes": member.size if member else 0,
        "crc32": member.crc if member else 0,
        "state": state,
        "status": status,
        "error": error,
    }
