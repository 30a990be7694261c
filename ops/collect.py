"""Send labelled photos, and their labels as feedback, to a running service: ground truth for a simulation.

    python -m ops collect photos.zip --url http://localhost:8000 --limit 200
    catsdogs collect photos.zip --url http://localhost:8000 --at-least 0.97

The photos lie in folders named Cat or cats and Dog or dogs, at any depth, in a folder or a zip file. Each is sent to
POST /predict, and its label to POST /feedback, for the service's live accuracy and its journal.
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
from shared.addresses import without_secrets
from shared.contract import CLASSES, Label
from shared.files import write_whole
from shared.folders import label_of
from shared.intervals import Interval, wilson

CONNECTIONS: Final = 4
# Attempts for each photo, and the longest wait between them: a busy service says when to retry.
ATTEMPTS: Final = 8
LONGEST_WAIT: Final = 10.0
SECONDS: Final = 60.0
SEED: Final = 20261123


class CollectError(Exception):
    """A problem the user can fix; addresses in its message are without their secrets."""

    def __init__(self, message: str) -> None:
        """Keep the message."""
        super().__init__(without_secrets(message))


@dataclass(frozen=True)
class LabelledPhoto:
    """A photo, what it shows, and how to read it."""

    label: Label
    name: str
    read: Callable[[], bytes]


class CollectedPhoto(msgspec.Struct, frozen=True, kw_only=True):
    """Result for one photo; never its name.

    ``refused`` is the problem's code where the service gave no answer, ``told`` whether it accepted the true label.
    """

    sha256: str
    true: Label
    predicted: str | None = None
    verdict: str | None = None
    probability: float | None = None
    refused: str | None = None
    told: bool = False


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """Result for all photos; ``accuracy`` and ``when_answered`` are None where no photo was answered.

    ``of_all`` counts refused photos as wrong: a service must not pass by refusing what it should know.
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
        CollectError: it is neither, or has no labelled photos.
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
            raise CollectError(f"{source}: neither a folder nor a readable zip file") from error
        for info in sorted(archive.infolist(), key=lambda info: info.filename):
            label = _label(PurePosixPath(info.filename))
            if label and not info.is_dir():
                photos.append(LabelledPhoto(label, info.filename, lambda info=info: archive.read(info)))  # type: ignore[misc]  # bound now
    if not photos:
        raise CollectError(f"{source}: no photos in folders named Cat or cats and Dog or dogs")
    return photos


def sample(photos: Sequence[LabelledPhoto], limit: int, seed: int = SEED) -> list[LabelledPhoto]:
    """``limit`` of the photos, the same share of cats and of dogs; the same ones for the same seed."""
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
        key: its API key, if it requires one.
        done: called after each photo.

    Raises:
        CollectError: the service cannot be reached, requires another key, or stays too busy.
    """
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        httpx.URL(url)
    except httpx.InvalidURL as error:
        raise CollectError(f"{url}: not a URL") from error  # the error has a part of it, which may be of a password
    places = iter(range(len(photos)))
    rows: dict[int, CollectedPhoto] = {}

    async def work() -> None:
        # One connection for a photo and its label: only the replica that answered knows the prediction.
        limits = httpx.Limits(max_connections=1)
        async with httpx.AsyncClient(base_url=url, headers=headers, timeout=SECONDS, limits=limits) as http:
            for place in places:
                rows[place] = await _ask(http, photos[place])
                done()

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(CONNECTIONS):
                group.create_task(work())
    # The others are of tasks that the first one ended.
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
    """Message if significantly fewer answers are right than in the model's own test; else None.

    Significantly: the two 95 % intervals do not overlap, which happens by chance about once in 200 times.
    """
    if model.test is None:
        return f"the model {model.version} has no test metrics in its contract"
    tested = model.test.accuracy
    if found.of_all.high >= tested.low:
        return None
    refused = f", counting the {found.refused:,} refused as wrong" if found.refused else ""
    return f"fewer are right than in the model's own test: {found.of_all.text()}{refused}, against {tested.text()}"


def summary_lines(found: Outcome) -> Iterator[str]:
    """The result in lines of text."""
    if found.accuracy is None:
        yield f"none of {found.photos:,} photos was answered"
        return
    yield f"right           {found.accuracy.text()} of {found.photos - found.refused:,} photos"
    if found.when_answered:
        yield f"where answered  {found.when_answered.text()}; {found.unsure:,} unsure"
    if found.refused:
        yield f"refused         {found.refused:,}"
    if found.untold:
        yield f"feedback        not accepted for {found.untold:,}: replicas without one CATSDOGS_ID_KEY, or a restart?"


def write_collected(rows: Sequence[CollectedPhoto], path: Path) -> None:
    """Write the rows, whole or not at all: as CSV if the name ends in .csv, else as JSON lines."""
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
    """Label of the nearest folder that names a class."""
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
    """Post; retry when the service is busy or the connection breaks."""
    reason, shown = "", http.base_url
    for wait in _waits():
        try:
            answer = await http.post(path, **content)  # type: ignore[arg-type]  # files or json
        except httpx.TransportError as error:
            reason = str(error) or type(error).__name__
            await asyncio.sleep(wait)
            continue
        if answer.status_code == 401:
            raise CollectError(f"{shown}: the service requires an API key; pass --key")
        if answer.status_code == 403:
            raise CollectError(f"{shown}: forbidden, {_detail(answer)}")
        if answer.status_code != 503:
            return answer
        reason = _code(answer)
        after = answer.headers.get("retry-after", "")
        await asyncio.sleep(min(float(after), LONGEST_WAIT) if after.isdecimal() else wait)
    raise CollectError(f"{shown}: {reason}, {ATTEMPTS} times in a row")


def _waits() -> Iterator[float]:
    for attempt in range(ATTEMPTS):
        yield min(0.25 * 2**attempt, LONGEST_WAIT)


def _detail(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["detail"])
    except (ValueError, KeyError, TypeError):  # a proxy before the service
        return " ".join(answer.text.split())[:200] or "without a reason"


def _code(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["code"])
    except (ValueError, KeyError, TypeError):
        return f"status {answer.status_code}"
