"""Labelled photos to a running service, and what they really show after them: the ground truth of a simulation.

    python -m ops collect photos.zip --url http://localhost:8000 --limit 200
    catsdogs collect photos.zip --url http://localhost:8000 --at-least 0.97

The photos lie in folders named Cat or cats and Dog or dogs, at any depth, in a folder or a zip file. Each is sent to
POST /predict; its true label follows through POST /feedback, so that the service's live accuracy and its journal know.
"""

import asyncio
import csv
import hashlib
import io
import random
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

import httpx
import msgspec

from ops.served import Served
from shared.contract import CLASSES, Label
from shared.files import write_whole
from shared.folders import label_of
from shared.intervals import Interval, wilson

CONNECTIONS: Final = 4
# How often a photo is sent, and the longest wait between: a service that is busy says when to come back.
ATTEMPTS: Final = 8
LONGEST_WAIT: Final = 10.0
SECONDS: Final = 60.0
SEED: Final = 20261123


class CollectError(Exception):
    """Something a person can mend."""


@dataclass(frozen=True)
class LabelledPhoto:
    """A photo, what it shows, and how to read it."""

    label: Label
    name: str
    read: Callable[[], bytes]


class CollectedPhoto(msgspec.Struct, frozen=True, kw_only=True):
    """What came of one photo; never its name.

    ``refused`` is the problem's code where the service gave no answer, ``told`` whether it took the true label.
    """

    sha256: str
    true: Label
    predicted: str | None = None
    verdict: str | None = None
    probability: float | None = None
    refused: str | None = None
    told: bool = False


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What came of all photos; ``accuracy`` and ``when_answered`` are None where no photo was answered.

    ``of_all`` counts what was refused as wrong: whoever refuses what it should know must not pass for a good one.
    """

    photos: int
    refused: int
    untold: int
    of_all: Interval
    accuracy: Interval | None
    when_answered: Interval | None
    unsure: int


def find_photos(source: Path, opened: ExitStack) -> list[LabelledPhoto]:
    """The labelled photos in a folder or zip file, in the order of their names.

    Args:
        source: the folder or file.
        opened: keeps the zip file open for as long as photos are to be read.

    Raises:
        CollectError: it is neither, or has no such photos.
    """
    photos: list[LabelledPhoto] = []
    if source.is_dir():
        for path in sorted(source.rglob("*")):
            label = _label(PurePosixPath(path.relative_to(source).as_posix()), source.name)
            if label and path.is_file():
                photos.append(LabelledPhoto(label, str(path), path.read_bytes))
    else:
        try:
            archive = opened.enter_context(zipfile.ZipFile(source))
        except (OSError, zipfile.BadZipFile) as error:
            raise CollectError(f"{source}: neither a folder nor a zip file that can be read") from error
        for info in sorted(archive.infolist(), key=lambda info: info.filename):
            label = _label(PurePosixPath(info.filename))
            if label and not info.is_dir():
                photos.append(LabelledPhoto(label, info.filename, lambda info=info: archive.read(info)))  # type: ignore[misc]  # bound now
    if not photos:
        raise CollectError(f"{source}: no photos in folders named Cat or cats and Dog or dogs")
    return photos


def sample(photos: Sequence[LabelledPhoto], limit: int, seed: int = SEED) -> list[LabelledPhoto]:
    """So many of the photos, as large a share of the cats as of the dogs; the same ones for the same seed."""
    if limit >= len(photos):
        return list(photos)
    cats, dogs = ([photo for photo in photos if photo.label == label] for label in CLASSES)
    some_cats = round(limit * len(cats) / len(photos))
    drawn = random.Random(seed)  # noqa: S311  # a sample, no secret
    return drawn.sample(cats, some_cats) + drawn.sample(dogs, limit - some_cats)


async def collect(
    photos: Sequence[LabelledPhoto], url: str, key: str | None, done: Callable[[], None] = lambda: None
) -> list[CollectedPhoto]:
    """Send every photo and its label.

    Args:
        photos: what to send.
        url: the service.
        key: its API key, if it wants one.
        done: called after each photo.

    Raises:
        CollectError: the service cannot be reached, wants another key, or stays too busy.
    """
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    places = iter(range(len(photos)))
    rows: dict[int, CollectedPhoto] = {}

    async def work() -> None:
        # One connection for a photo and its label: of several replicas, only the one that answered remembers it.
        limits = httpx.Limits(max_connections=1)
        async with httpx.AsyncClient(base_url=url, headers=headers, timeout=SECONDS, limits=limits) as http:
            for place in places:
                rows[place] = await _ask(http, photos[place])
                done()

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(CONNECTIONS):
                group.create_task(work())
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from errors
    return [rows[place] for place in sorted(rows)]


def outcome(rows: Sequence[CollectedPhoto]) -> Outcome:
    """Count what came of the photos."""
    answered = [row for row in rows if row.refused is None]
    sure = [row for row in answered if row.verdict != "unsure"]
    right = sum(row.predicted == row.true for row in answered)
    return Outcome(
        photos=len(rows),
        refused=len(rows) - len(answered),
        untold=sum(not row.told for row in answered),
        of_all=wilson(right, len(rows)),
        accuracy=wilson(right, len(answered)) if answered else None,
        when_answered=wilson(sum(row.verdict == row.true for row in sure), len(sure)) if sure else None,
        unsure=len(answered) - len(sure),
    )


def below_test(found: Outcome, model: Served) -> str | None:
    """Say so if the share of right answers is too small to be chance, given what the model's test found; else None.

    Too small is where the two 95 % intervals do not meet; chance alone does that about once in 200 times.
    """
    if model.test is None:
        return f"the model {model.version} says nothing of its test"
    tested = model.test.accuracy
    if found.of_all.high >= tested.low:
        return None
    refused = f", the {found.refused:,} refused counted as wrong" if found.refused else ""
    return f"fewer are right than in the model's own test: {found.of_all.text()}{refused}, where it was {tested.text()}"


def summary_lines(found: Outcome) -> Iterator[str]:
    """Say it in words."""
    if found.accuracy is None:
        yield f"none of {found.photos:,} photos was answered"
        return
    yield f"right           {found.accuracy.text()} of {found.photos - found.refused:,} photos"
    if found.when_answered:
        yield f"where answered  {found.when_answered.text()}; {found.unsure:,} unsure"
    if found.refused:
        yield f"refused         {found.refused:,}"
    if found.untold:
        yield f"feedback        not taken for {found.untold:,}: has it several replicas, or just been restarted?"


def write_collected(rows: Sequence[CollectedPhoto], path: Path) -> None:
    """Write the rows, whole or not at all: CSV where the name ends so, else a JSON object a line."""
    if path.suffix == ".csv":
        table = io.StringIO()
        writer = csv.DictWriter(table, CollectedPhoto.__struct_fields__, lineterminator="\n")
        writer.writeheader()
        writer.writerows(msgspec.structs.asdict(row) for row in rows)
        data = table.getvalue().encode()
    else:
        data = msgspec.json.Encoder().encode_lines(rows)
    write_whole(path, data)


def _label(path: PurePosixPath, top: str = "") -> Label | None:
    """The label that the nearest folder with a name of one gives."""
    folders = (*path.parts[:-1][::-1], top)
    return next((label for name in folders if (label := label_of(name))), None)


async def _ask(http: httpx.AsyncClient, photo: LabelledPhoto) -> CollectedPhoto:
    try:
        data = await asyncio.to_thread(photo.read)
    except (OSError, zipfile.BadZipFile) as error:
        raise CollectError(f"{photo.name}: {error}") from error
    digest = hashlib.sha256(data).hexdigest()
    answer = await _post(http, "/predict", files={"file": data})
    if answer.status_code != 200:
        return CollectedPhoto(sha256=digest, true=photo.label, refused=_code(answer))
    prediction = answer.json()
    told = await _post(http, "/feedback", json={"id": prediction["id"], "label": photo.label})
    return CollectedPhoto(
        sha256=digest,
        true=photo.label,
        predicted=prediction["predicted_label"],
        verdict=prediction["verdict"],
        probability=max(prediction["probabilities"].values()),
        told=told.status_code == 200,
    )


async def _post(http: httpx.AsyncClient, path: str, **content: object) -> httpx.Response:
    """Post, again after a while where the service is busy or a connection breaks."""
    reason = ""
    for wait in _waits():
        try:
            answer = await http.post(path, **content)  # type: ignore[arg-type]  # files or json
        except httpx.TransportError as error:
            reason = str(error) or type(error).__name__
            await asyncio.sleep(wait)
            continue
        if answer.status_code in (401, 403):
            raise CollectError(f"{http.base_url}: the service wants an API key: --key")
        if answer.status_code != 503:
            return answer
        reason = _code(answer)
        after = answer.headers.get("retry-after", "")
        await asyncio.sleep(min(float(after), LONGEST_WAIT) if after.isdecimal() else wait)
    raise CollectError(f"{http.base_url}: {reason}, {ATTEMPTS} times in a row")


def _waits() -> Iterator[float]:
    for attempt in range(ATTEMPTS):
        yield min(0.25 * 2**attempt, LONGEST_WAIT)


def _code(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["code"])
    except (ValueError, KeyError, TypeError):
        return f"status {answer.status_code}"
