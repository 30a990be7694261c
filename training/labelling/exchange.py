"""Labels that people gave elsewhere, and labels for others: CSV as the ledger's, and Label Studio's JSON.

A CSV file needs the columns ``id`` and ``label``; the others of the ledger may be there. Of a JSON file, annotations
count, predictions do not: https://labelstud.io/guide/export. It has the sample's id in ``data.id``, or in the name of
``data.image``.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from shared.contract import Actual
from shared.files import write_whole
from shared.samples import SUFFIX, Sample
from shared.stores import SCHEMES
from training import decisions
from training.decisions import ID, Decision, Standing
from training.stage import StageError

CSV: Final = ".csv"
JSON: Final = ".json"
UNKNOWN: Final = "unknown"  # a model that neither the file nor a sample names
LABELS: Final[dict[str, Actual]] = {
    "cat": "cats", "cats": "cats", "dog": "dogs", "dogs": "dogs", "neither": "neither", "both": "both"
}  # fmt: skip
# A picture's name at the end of an address; Label Studio puts a prefix and a hyphen before that of an upload.
_NAME: Final = re.compile(rf"(?:^|[/=-])([0-9A-Za-z_]+){re.escape(SUFFIX)}$")


class Choices(msgspec.Struct):
    """What was chosen."""

    choices: list[str] = []


class Told(msgspec.Struct):
    """Who chose, and what kind of decision it is: what Label Studio has no place for, and keeps with a result."""

    who: str | None = None
    decision: Literal["label", "settle"] = "label"


class Result(msgspec.Struct):
    """A part of an annotation; of other types than ``choices``, the value is not read."""

    type: str
    value: Any
    meta: Told | None = None


class Annotation(msgspec.Struct):
    """What one person said of one picture."""

    result: list[Result]
    completed_by: int | dict[str, Any] | None = None
    created_at: datetime | None = None
    updated_at: datetime | None = None
    was_cancelled: bool = False  # Label Studio's "skip"


class Task(msgspec.Struct):
    """A picture."""

    data: dict[str, Any]
    annotations: list[Annotation] = []


def read(path: Path, who: str, samples: dict[str, Sample]) -> list[Decision]:
    """The decisions in a file of another tool, or in somebody's ledger.

    Args:
        path: the file, whose suffix says what it is.
        who: whose they are where the file does not say.
        samples: that there are, by id.

    Raises:
        StageError: the file cannot be read.
    """
    _check(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise StageError(f"{path}: {error.strerror}") from error
    now = datetime.now(UTC).isoformat(timespec="seconds")
    if path.suffix.lower() == CSV:
        found = decisions.parse(data, str(path), {"decision": "label", "who": who, "when": now, "model": UNKNOWN})
    else:
        try:
            tasks = msgspec.json.decode(data, type=list[Task])
            found = sorted(_annotated(tasks, who, now), key=lambda line: line.when)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise StageError(f"{path}: not tasks of Label Studio: {error}") from error
    return [
        msgspec.structs.replace(line, model=samples[line.id].prediction.model)
        if line.model == UNKNOWN and line.id in samples
        else line
        for line in found
    ]


def _annotated(tasks: list[Task], who: str, now: str) -> Iterator[Decision]:
    for number, task in enumerate(tasks, 1):
        named = _NAME.search(str(task.data.get("image", "")))
        id_ = str(task.data.get("id") or (named[1] if named else ""))
        for each in task.annotations:
            values = [msgspec.convert(part.value, Choices).choices for part in each.result if part.type == "choices"]
            chosen = [choice for choices in values for choice in choices]
            if each.was_cancelled or not chosen:
                continue
            if not ID.fullmatch(id_):
                raise msgspec.ValidationError(f"task {number}: no id of a sample in data.id or data.image")
            if len(chosen) > 1 or chosen[0].strip().lower() not in LABELS:
                raise msgspec.ValidationError(f"task {number}: {', '.join(chosen)} is none of {', '.join(LABELS)}")
            told = next((part.meta for part in each.result if part.meta), Told())
            person = told.who or each.completed_by
            if isinstance(person, dict):
                person = person.get("email") or person.get("id")
            said = {
                "id": id_,
                "label": LABELS[chosen[0].strip().lower()],
                "decision": told.decision,
                "who": f"Label Studio {person}" if isinstance(person, int) else person or who,
                "when": each.updated_at or each.created_at or now,
                "model": UNKNOWN,
            }
            yield msgspec.convert(said, Decision)


def news(found: Iterable[Decision], ledger: Iterable[Decision]) -> list[Decision]:
    """The lines to append to the ledger: what stands in ``found``, and is both another label and said later.

    Later than what this person said in the ledger, also if it was taken back; a settlement, later than any other.
    """
    said: dict[str, list[Decision]] = defaultdict(list)
    for line in ledger:
        said[line.id].append(line)
    standing = decisions.standing(line for lines in said.values() for line in lines)

    def is_news(line: Decision) -> bool:
        about = standing.get(line.id, Standing())
        settles = line.decision == "settle"
        now = (about.settled and about.settled.label) if settles else about.labels.get(line.who)
        return line.label != now and all(
            line.when > other.when
            for other in said[line.id]
            if (other.decision == "settle" if settles else other.decision == "label" and other.who == line.who)
            or (other.decision == "undo" and other.who == line.who)
        )

    return [
        msgspec.structs.replace(line, when=line.when.astimezone(UTC))
        for about in decisions.standing(found).values()
        for line in _latest(about)
        if is_news(line)
    ]


def write(path: Path, address: str, samples: dict[str, Sample], ledger: Iterable[Decision]) -> int:
    """Write what stands; returns how many samples have labels. A JSON file has a task for the others too.

    Of a sample that was settled it has that label only, since Label Studio knows no such thing.

    Raises:
        StageError: the file's suffix is not known.
    """
    _check(path)
    standing = decisions.standing(ledger)
    labelled = {id_: about for id_ in samples if (about := standing.get(id_))}
    if path.suffix.lower() == CSV:
        write_whole(path, decisions.text(line for about in labelled.values() for line in _latest(about)))
    else:
        tasks = [_task(address, id_, labelled.get(id_, Standing())) for id_ in samples]
        write_whole(path, msgspec.json.format(msgspec.json.encode(tasks)) + b"\n")
    return sum(bool(about.lines) for about in labelled.values())


def _latest(about: Standing) -> list[Decision]:
    """What stands of each person."""
    return list({(line.who, line.decision): line for line in about.lines}.values())


def _task(address: str, id_: str, about: Standing) -> dict[str, Any]:
    place = address.rstrip("/")
    if not address.startswith(SCHEMES):  # Label Studio serves files below its document root like this
        place = f"/data/local-files/?d={Path(address).resolve().name}"
    return {
        "data": {"id": id_, "image": f"{place}/{id_}{SUFFIX}"},
        "annotations": [
            {
                "result": [
                    {
                        "from_name": "label",
                        "to_name": "image",
                        "type": "choices",
                        "value": {"choices": [line.label]},
                        "meta": {"who": line.who, "decision": line.decision},
                    }
                ],
                "created_at": line.when,
                "was_cancelled": False,
                # Label Studio refuses an address that no user of its has; without one the importing user is named.
                **({"completed_by": {"email": line.who}} if "@" in line.who else {}),
            }
            for line in ([about.settled] if about.settled else _latest(about))
        ],
    }


def _check(path: Path) -> None:
    if path.suffix.lower() not in (CSV, JSON):
        raise StageError(f"{path}: neither {CSV} nor {JSON}, which say what the file is")
