"""The journal's lines: what a service records of each prediction, feedback and answer of its challenger, as JSON.

It never has pixels, file names, addresses or ids of clients. A journal is a folder of files ``journal-000001.jsonl``,
``journal-000002.jsonl`` and so on; what one service wrote of a prediction comes before its own feedback. Where several
share a folder, feedback may lie in an earlier file than its prediction. Nothing depends on the times in the lines,
because a clock may jump.
"""

import re
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Final, Literal

import msgspec

from shared.contract import Actual, Label

NAME: Final = re.compile(r"journal-(\d{6,})\.jsonl")


class JournalError(Exception):
    """The journal does not exist or cannot be read."""


class PredictionLine(msgspec.Struct, frozen=True, kw_only=True, tag="prediction", tag_field="type"):
    """One answer.

    ``time`` is UTC, ``brightness`` the mean pixel value in 0..1, ``bytes`` the size of the file. ``again``: the picture
    was looked at twice, which lines of 0.1 do not say, since it never was.
    """

    time: datetime
    id: str
    label: Label
    verdict: Literal["cats", "dogs", "unsure"]
    unsure_because: Literal["close_call", "unfamiliar"] | None
    probabilities: dict[str, float]
    familiarity: float
    brightness: float
    model: str
    bytes: int
    queue_ms: float
    decode_ms: float
    infer_ms: float
    again: bool = False


class FeedbackLine(msgspec.Struct, frozen=True, kw_only=True, tag="feedback", tag_field="type"):
    """What a prediction's picture shows, as a client reported it."""

    time: datetime
    id: str
    label: Actual


class ChallengerLine(msgspec.Struct, frozen=True, kw_only=True, tag="challenger", tag_field="type"):
    """What the challenger, of version ``model``, answered to a prediction's picture, unseen by the client.

    It saw the 224×224 pixels alone: an answer with ``again`` is one that the whole picture might have changed.
    """

    time: datetime
    id: str
    model: str
    label: Label
    verdict: Literal["cats", "dogs", "unsure"]
    probabilities: dict[str, float]
    again: bool


class Unreadable(msgspec.Struct, frozen=True):
    """A line that is not a journal line, or of a type that this version does not know."""

    file: Path
    number: int


Line = PredictionLine | FeedbackLine | ChallengerLine

_DECODER: Final = msgspec.json.Decoder(Line)


def name(number: int) -> str:
    """The name of a journal's file."""
    return f"journal-{number:06}.jsonl"


def entries(folder: Path) -> list[tuple[int, Path]]:
    """Everything in ``folder`` with the name of a journal's file, with its number, in order.

    Raises:
        OSError: the folder cannot be read.
    """
    return sorted((int(found[1]), path) for path in folder.iterdir() if (found := NAME.fullmatch(path.name)))


def files(folder: Path) -> list[tuple[int, Path]]:
    """The regular files among the entries: opening a FIFO would block its reader.

    Raises:
        OSError: the folder cannot be read.
    """
    return [(number, path) for number, path in entries(folder) if path.is_file()]


def gather(paths: Iterable[Path]) -> list[Path]:
    """The files that ``paths`` name, folders replaced by the journal's files in them, each once.

    Raises:
        JournalError: one is neither, or cannot be read.
    """
    found: dict[Path, None] = {}
    for path in paths:
        try:
            found |= dict.fromkeys([file for _, file in files(path)] if path.is_dir() else [path])
            if not path.is_dir():
                path.open("rb").close()
        except OSError as error:
            raise JournalError(f"{path}: {error.strerror}") from error
    return list(found)


def read(paths: Iterable[Path]) -> Iterator[Line | Unreadable]:
    """Yield the lines of these files, one file after the other.

    A last line without its newline is being written, or was when the process died: it is ignored. So are fields that a
    later version added.

    Raises:
        OSError: a file cannot be read.
    """
    for path in paths:
        yield from _read(path, 0)


def recent(folder: Path, max_bytes: int) -> Iterator[Line | Unreadable]:
    """Yield the lines in the last ``max_bytes`` of the journal in ``folder``, in their order.

    Raises:
        OSError: the folder or a file cannot be read.
    """
    chosen: list[tuple[Path, int]] = []
    for _, path in reversed(files(folder)):
        size = path.stat().st_size
        chosen.append((path, max(0, size - max_bytes)))
        max_bytes -= size
        if max_bytes <= 0:
            break
    for path, start in reversed(chosen):
        yield from _read(path, start)


def _read(path: Path, start: int) -> Iterator[Line | Unreadable]:
    with path.open("rb") as file:
        if start:
            file.seek(start - 1)
            file.readline()  # to the next line's start; from one byte back, so that no whole line is skipped
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            try:
                yield _DECODER.decode(line)
            # RecursionError: a file that is not a journal may be nested arbitrarily deep.
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                yield Unreadable(path, number)
