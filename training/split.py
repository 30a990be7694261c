"""Split: assign every kept photo to train, val or test by its content.

    catsdogs split

The side depends only on the photo's SHA-256. So a photo is on the same side in every version of the data set, adding
photos moves none of the old ones, and since the audit keeps one of each set of near-duplicates, no photo has a copy on
another side. The cost is that 80/10/10 is met only on average.

What ``gather`` brings is never on the test side, so that figures on it stay comparable: the training side has its share
of it, and the rest is measured on sides of its own, "production" and "hard".

With ``fetch.keep_sides`` a photo stays on the side that its folder names, train if it names none. A side that no folder
names is taken from the training side, by content.
"""

import csv
import hashlib
import io
from collections import Counter
from collections.abc import Mapping
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import msgspec

from shared.contract import CLASSES
from shared.files import write_whole
from training.audit import AuditRow
from training.stage import PRODUCTION, StageError

SIDES: Final = ("train", "val", "test")
# Test sides of what production met: photos that were kept by chance, and those that a model found hard.
FROM_PRODUCTION: Final = (PRODUCTION, "hard")
NONE_GIVEN: Final[Mapping[str, str]] = MappingProxyType({})


@dataclass(frozen=True)
class Photo:
    """One kept photo and its side; ``path`` is relative to the raw folder, whose folders are the collections."""

    path: str
    label: str
    collection: str
    side: str
    sha256: str


def split(
    rows: list[AuditRow], out: Path, train: float, val: float, given: Mapping[str, str] = NONE_GIVEN
) -> list[Photo]:
    """Assign the kept rows of an audit to sides and write the table ``out``.

    Args:
        rows: the audit's table.
        out: the CSV to write.
        train: share of the photos to train on, 0..1.
        val: share to validate on; the rest is the test set.
        given: the side of the photos that keep theirs, by path; of those in ``FROM_PRODUCTION`` the training side gets
            its share.

    Raises:
        StageError: a class has no photo on one of the sides.
    """
    taken = set(given.values())
    rest = {"train": train, "val": 0 if "val" in taken else val, "test": 0 if "test" in taken else 1 - train - val}
    of_train = (rest["train"] / sum(rest.values()), rest["val"] / sum(rest.values()))

    def side_of(row: AuditRow) -> str:
        said = given.get(row.path)
        if said is None:
            return side(row.sha256, train, val)
        if said in FROM_PRODUCTION:
            return "train" if side(row.sha256, train, val) == "train" else said
        return side(row.sha256, *of_train) if said == "train" else said

    photos = [
        Photo(row.path, row.label, row.path.partition("/")[0], side_of(row), row.sha256)
        for row in rows
        if row.status == "kept"
    ]
    count = Counter((photo.side, photo.label) for photo in photos)
    empty = [f"{name}/{label}" for name in SIDES for label in CLASSES if not count[name, label]]
    if empty:
        have = " and ".join(f"{sum(photo.label == label for photo in photos):,} {label}" for label in CLASSES)
        raise StageError(
            f"{len(photos)} photos are too few to split: none left for {', '.join(empty)}. There are {have}: add "
            "photos, or change split.train and split.val"
        )
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(field.name for field in fields(Photo))
    writer.writerows(map(astuple, photos))
    write_whole(out, text.getvalue())
    return photos


def side(sha256: str, train: float, val: float) -> str:
    """Side of the photo with this digest: its first 64 bits, read as a number in 0..1, against the shares."""
    position = int(sha256[:16], 16) / 2**64
    if position < train:
        return "train"
    return "val" if position < train + val else "test"


def read(path: Path) -> list[Photo]:
    """Read the table that :func:`split` wrote."""
    if not path.exists():
        raise StageError(f"{path}: not found; run `catsdogs split` first")
    try:
        with path.open(newline="") as file:
            return [msgspec.convert(row, Photo) for row in csv.DictReader(file)]
    except msgspec.ValidationError as error:
        raise StageError(f"{path}: {error}; run `catsdogs split` again") from error


def summary(photos: list[Photo]) -> dict[str, Any]:
    """Photos per side and class, of all collections and of each, for the report."""
    count = Counter((photo.collection, photo.side, photo.label) for photo in photos)
    names = sorted({photo.collection for photo in photos})
    there = {photo.side for photo in photos}

    def sides(of: list[str]) -> dict[str, dict[str, int]]:
        return {
            side: {label: sum(count[name, side, label] for name in of) for label in CLASSES}
            for side in (*SIDES, *FROM_PRODUCTION)
            if side in SIDES or side in there
        }

    return sides(names) | {"collections": {name: sides([name]) for name in names}}


def given_sides(names: Path) -> dict[str, str]:
    """The sides that photos keep, by path, from the table that ``fetch`` wrote."""
    if not names.exists():
        raise StageError(f"{names}: not found; run `catsdogs fetch` first")
    with names.open(newline="") as file:
        return {row["path"]: row["side"] for row in csv.DictReader(file) if row["side"]}


def split_digest(photos: list[Photo]) -> str:
    """SHA-256 over side, label and content of every photo, whatever its name."""
    lines = sorted(f"{photo.side} {photo.label} {photo.sha256}\n" for photo in photos)
    return hashlib.sha256("".join(lines).encode()).hexdigest()
