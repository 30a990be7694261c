"""The ledger of labels: what people said that samples show, one line a decision, never rewritten.

A CSV file with the columns

    id,label,decision,who,when,model

``id`` is the sample's: its prediction's id, and the name of its file without ``.png``. It is not the SHA-256 of
``labels.csv``, because a sample's file changes when feedback is added to it. ``label`` is ``cats``, ``dogs``,
``neither`` or ``both``. ``decision`` says what the line does:

- ``label``: this person gives the sample this label, in place of the one that they gave it earlier;
- ``settle``: the label that holds whatever people said before or say later, until another ``settle``;
- ``undo``: takes back this person's latest line about the sample that was not taken back yet.

``who`` is the person's name, ``when`` the time in UTC, ISO 8601, and ``model`` the version of the model whose answer
the sample was kept for. What a client reported by ``POST /feedback`` is never in here.

A last line that has no newline and is no whole decision was being written when the process died, and the page never
said that it is saved: it is ignored, and the next decision takes its place.
"""

import csv
import errno
import fcntl
import io
import os
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from shared.contract import Actual
from training.stage import StageError

LEDGER: Final = Path("labels.csv")  # in the working directory, to be committed
ID: Final = re.compile(r"[0-9A-Za-z_-]{1,100}")
Id = Annotated[str, Meta(pattern=rf"^{ID.pattern}\Z")]
# Names of people and models: no line break, so that a line is a row.
Text = Annotated[str, Meta(pattern=r"^[^\x00-\x1f\x7f\x85\u2028\u2029]{1,200}\Z")]


class Decision(msgspec.Struct, frozen=True):
    """A line of the ledger; its fields are the columns."""

    id: Id
    label: Actual
    decision: Literal["label", "settle", "undo"]
    who: Text
    when: Annotated[datetime, Meta(tz=True)]
    model: Text


COLUMNS: Final = Decision.__struct_fields__
HEADER: Final = ",".join(COLUMNS).encode()
LONGEST: Final = 4096  # bytes; no line is as long


@dataclass
class Standing:
    """What stands about one sample: the lines that were not taken back, in their order."""

    lines: list[Decision] = field(default_factory=list)

    @property
    def labels(self) -> dict[str, Actual]:
        """The label that each person gives it, by their name."""
        return {line.who: line.label for line in self.lines if line.decision == "label"}

    @property
    def settled(self) -> Decision | None:
        """The line that settles it."""
        return next((line for line in reversed(self.lines) if line.decision == "settle"), None)

    @property
    def label(self) -> Actual | None:
        """The label that holds: the settled one, or that of all people; None if they disagree, or nobody said."""
        if self.settled:
            return self.settled.label
        labels = set(self.labels.values())
        return labels.pop() if len(labels) == 1 else None

    @property
    def disputed(self) -> bool:
        """Whether people disagree, and nobody settled it."""
        return self.settled is None and len(set(self.labels.values())) > 1


def decisions(path: Path) -> dict[str, Actual]:
    """The labels that hold, by the sample's id: where all people agree, or where it was settled.

    ``neither`` and ``both`` are among them. Samples that people disagree about are not, nor those whose decisions were
    taken back. It does not know of tombstones: leave out what was forgotten.

    Raises:
        StageError: the file cannot be read, or a line is not a decision.
    """
    return {id_: label for id_, found in standing(read(path)).items() if (label := found.label)}


def standing(lines: Iterable[Decision]) -> dict[str, Standing]:
    """What stands about each sample, from all lines in their order."""
    found: dict[str, Standing] = defaultdict(Standing)
    for line in lines:
        about = found[line.id].lines
        if line.decision != "undo":
            about.append(line)
        elif own := [place for place, earlier in enumerate(about) if earlier.who == line.who]:
            del about[own[-1]]
    return dict(found)


def read(path: Path) -> list[Decision]:
    """All lines, in their order; none if the file does not exist.

    Raises:
        StageError: see `decisions`.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StageError(f"{path}: {error.strerror}") from error
    first, newline, _ = data.partition(b"\n")
    # Checked here, since `append` would take another file's last line for a torn one.
    if first.removesuffix(b"\r") != HEADER if newline else not HEADER.startswith(data):
        raise StageError(f"{path}: not a ledger of labels, whose first line is {HEADER.decode()}")
    return parse(data[: _end(data)], str(path))


def parse(data: bytes, name: str, defaults: dict[str, str] | None = None) -> list[Decision]:
    """The lines of a CSV file with a header.

    Args:
        data: the file.
        name: its name, for messages.
        defaults: values of columns that are absent or empty.

    Raises:
        StageError: it is not UTF-8, or a line is not a decision.
    """
    try:
        rows = csv.DictReader(io.StringIO(data.decode("utf-8-sig")), strict=True)
        return [_decision(row, defaults or {}, f"{name}, line {rows.line_num}") for row in rows]
    except (UnicodeDecodeError, csv.Error) as error:
        raise StageError(f"{name}: not a CSV file in UTF-8") from error


def _decision(row: dict[str, str], defaults: dict[str, str], where: str) -> Decision:
    try:
        return msgspec.convert({**defaults, **{name: value for name, value in row.items() if value}}, Decision)
    except msgspec.ValidationError as error:
        raise StageError(f"{where}: {error}") from error


def append(path: Path, lines: Iterable[Decision]) -> None:
    """Add lines to a ledger that was read, and return when they are on the disk; several processes may do so at once.

    Raises:
        StageError: a name does not fit on a line.
        OSError: they cannot be written; then none of them is in the file.
    """
    try:
        lines = msgspec.convert(msgspec.to_builtins(list(lines)), list[Decision])
    except msgspec.ValidationError as error:
        raise StageError(f"{path}: {error}") from error
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        whole, newline = _whole(path)
        file.truncate(whole)
        data = newline + text(lines, header=not whole).encode()
        try:
            if file.write(data) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(file.fileno())
        except OSError:
            file.truncate(whole)
            raise


def _whole(path: Path) -> tuple[int, bytes]:
    """Bytes up to the end of the last whole line, and the newline if it lacks it."""
    with path.open("rb") as file:
        start = max(0, file.seek(0, os.SEEK_END) - LONGEST)
        file.seek(start)
        tail = file.read()
    end = _end(tail)
    return start + end, b"" if tail[:end].endswith(b"\n") or not end else b"\n"


def _end(data: bytes) -> int:
    """Where the last whole line ends; one without a newline is whole if it is a decision: editors leave it out."""
    start = data.rfind(b"\n") + 1
    try:
        parse(HEADER + b"\n" + data[start:], "")
    except StageError:
        return start
    return len(data)


def text(lines: Iterable[Decision], *, header: bool = True) -> str:
    """The lines as CSV."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerows([COLUMNS] * header)
    writer.writerows(msgspec.to_builtins(line).values() for line in lines)
    return out.getvalue()
