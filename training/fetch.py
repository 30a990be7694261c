"""Fetch: copy the photos unchanged to ``data/raw/<collection>/{cats,dogs}/``.

catsdogs fetch kaggle oxford-iiit-pet       # collections that are downloaded
catsdogs fetch photos/ more.tar.gz          # folders, zip and tar files, tables of paths and labels
catsdogs fetch --classes "cats=cat,kitten,0 dogs=dog,puppy,1" photos.zip

``docs/pipeline.md`` has the layouts. ``data/names.csv`` has the collection of each photo, the name that it had there,
and the side that it keeps. What is passed over is counted by its reason.
"""

import csv
import hashlib
import io
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Final

from shared.contract import CLASSES, Label
from shared.files import write_whole
from shared.folders import CLASS_FOLDERS
from shared.pixels import sniff
from shared.spec import FORMATS
from training import layouts
from training.downloads import KNOWN, download
from training.params import Collection
from training.sources import File, PassedOverError, hidden, opened
from training.stage import PRODUCTION, StageError, progress, whole_directory

REASONS: Final = {
    "hidden": "hidden",
    "no_class": "in no class folder",
    "not_a_picture": f"not a picture in an accepted format ({', '.join(FORMATS)})",
    "password_protected": "password-protected",
    "broken": "broken or not readable",
    "too_large": "too large",
    "missing": "named by a table, but not there",
    "repeated": "the same file again",
}
NOT_STATED: Final = "not stated"
# Licence and origin of what `gather` brings.
OF_PRODUCTION: Final = ("of those who sent them", "kept by the service, labelled by a person")
EXAMPLES: Final = 3  # names shown for each reason
# A file of such a name is left to the audit, which lists it as corrupt if its bytes are no picture's.
PICTURE: Final = re.compile(r"\.(jpe?g|jpe|jfif|png|webp|gif|bmp|avif|heic|heif)", re.IGNORECASE)
# Names that need no quoting in a table and that every file system takes. Others give way to a digest.
PLAIN: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9 ._()+@=&~#!-]{0,150}[A-Za-z0-9()_-])?")
SUFFIX: Final = re.compile(r"\.[A-Za-z0-9]{1,5}")


@dataclass
class Fetched:
    """What the sources gave: photos by collection and class and by the side of their folder, files passed over."""

    collections: dict[Collection, Counter[str]] = field(default_factory=dict)
    sides: Counter[str] = field(default_factory=Counter)
    passed_over: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    @property
    def photos(self) -> Counter[str]:
        """Photos of all collections, by class."""
        return sum(self.collections.values(), Counter())

    def pass_over(self, name: str, reason: str) -> None:
        """Count a file that is not taken."""
        self.passed_over[reason] += 1
        if len(self.examples[reason]) < EXAMPLES:
            self.examples[reason].append(ascii(name))

    def report(self) -> dict[str, Any]:
        """The counts, for ``reports/fetch.json``."""
        return {
            "photos": {label: self.photos[label] for label in CLASSES},
            "collections": {
                one.name: {"licence": one.licence, "origin": one.origin, **{label: photos[label] for label in CLASSES}}
                for one, photos in self.collections.items()
            },
            "sides": {side: self.sides[side] for side in ("train", "val", "test")},
            "passed_over": {reason: self.passed_over[reason] for reason in REASONS},
        }

    def lines(self) -> list[str]:
        """What was passed over, a line for each reason."""
        return [
            f"passed over {count:,} {REASONS[reason]}: {', '.join(self.examples[reason])}"
            + (", …" if count > EXAMPLES else "")
            for reason, count in self.passed_over.items()
        ]


def fetch(
    sources: Iterable[str | Collection],
    out: Path,
    classes: Mapping[str, Label] = CLASS_FOLDERS,
    *,
    keep_sides: bool = False,
    gathered: Path | None = None,
) -> Fetched:
    """Copy every photo of ``sources`` that has a label to ``out``, and list them in ``names.csv`` beside it.

    Args:
        sources: folders, archives, tables, and names in :data:`training.downloads.KNOWN`.
        out: the folder to make.
        classes: the label that a folder of each name, in lower case, gives its photos.
        keep_sides: whether ``names.csv`` says the side that a photo's folder names, for ``split`` to keep; ``train`` if
            it names none.
        gathered: the folder that ``gather`` made. Its photos are one more collection, and ``names.csv`` says for each
            which test side it may be on.

    Raises:
        StageError: a source is missing or unreadable, a class has no photo in any of them, or no folder names a side.
    """
    fetched = Fetched()
    rows = [("path", "collection", "name", "side")]
    collections = named(sources)
    if gathered and any(gathered.glob("*/*/*")):
        collections.append(Collection(str(gathered), PRODUCTION, *OF_PRODUCTION))
    with whole_directory(out) as aside:
        for collection in collections:
            source, ours = collection.source, collection.name == PRODUCTION
            names = CLASS_FOLDERS if ours else classes
            path = download(source) if source in KNOWN else Path(source).expanduser().absolute()
            folder = aside / collection.name
            photos = fetched.collections[collection] = Counter()
            seen: set[tuple[Label, tuple[int, int]]] = set()
            with opened(path, scratch=aside) as files:
                for file in progress(files, f"reading {collection.name}", unit=" files"):
                    try:
                        label, data = _photo(file, layouts.label(file, path.name, names), seen)
                        place = _write(folder / label, PurePosixPath(file.name).name, data)
                    except PassedOverError as error:
                        fetched.pass_over(file.name, error.reason)
                        continue
                    side = layouts.side(file.name, path.name)
                    photos[label] += 1
                    fetched.sides.update([side] if side else [])
                    kept = file.name.partition("/")[0] if ours else (side or "train") if keep_sides else ""
                    rows.append((place.relative_to(aside).as_posix(), collection.name, file.name, kept))
        _check(fetched, ", ".join(one.source for one in collections), keep_sides=keep_sides)
        text = io.StringIO()
        # Quoted, since names may have line ends in them; bytes that are no text are written as escapes.
        csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL).writerows(rows)
        write_whole(out.with_name("names.csv"), text.getvalue().encode(errors="backslashreplace"))
    return fetched


def named(sources: Iterable[str | Collection]) -> list[Collection]:
    """The collections with all that is known of them; one without a name gets its source's, with a number if taken."""
    collections = [Collection(source=source) if isinstance(source, str) else source for source in sources]
    taken = {PRODUCTION} | {collection.name.lower() for collection in collections}
    result = []
    for collection in collections:
        source = collection.source
        known = Collection(source, _plain(source), licence=NOT_STATED, origin=NOT_STATED)
        if source in KNOWN:
            known = KNOWN[source].collection
        name, number = collection.name or known.name, 1
        while not collection.name and name.lower() in taken:
            number += 1
            name = f"{known.name}-{number}"
        taken.add(name.lower())
        licence, origin = collection.licence or known.licence, collection.origin or known.origin
        result.append(Collection(source, name, licence, origin))
    return result


def _photo(file: File, label: Label | None, seen: set[tuple[Label, tuple[int, int]]]) -> tuple[Label, bytes]:
    """The label and the bytes of a photo.

    Raises:
        PassedOverError: the file is not one to learn from.
    """
    if hidden(file.name):
        raise PassedOverError("hidden")
    if file.reason:
        raise PassedOverError(file.reason)
    if label is None:
        raise PassedOverError("no_class")
    if file.same:
        if (label, file.same) in seen:
            raise PassedOverError("repeated")
        seen.add((label, file.same))
    data = file.read()
    if not (sniff(data) or PICTURE.fullmatch(PurePosixPath(file.name).suffix)):
        raise PassedOverError("not_a_picture")
    return label, data


def _write(folder: Path, name: str, data: bytes) -> Path:
    """Write the photo, under its digest if its name is taken or not plain.

    Raises:
        PassedOverError: it is there under its digest already.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    if not PLAIN.fullmatch(name) or path.exists():
        suffix = PurePosixPath(name).suffix
        path = folder / (hashlib.sha256(data).hexdigest()[:20] + (suffix if SUFFIX.fullmatch(suffix) else ""))
        if path.exists():
            raise PassedOverError("repeated")
    path.write_bytes(data)
    return path


def _plain(source: str) -> str:
    """A plain name for the collection at this path."""
    plain = PurePosixPath(layouts.stem(Path(source).expanduser().absolute().name)).stem
    return plain if PLAIN.fullmatch(plain) else "photos"


def _check(fetched: Fetched, sources: str, *, keep_sides: bool) -> None:
    empty = [label for label in CLASSES if not fetched.photos[label]]
    if empty:
        wanted = 'a Cat and a Dog folder with files, or other names by --classes "cats=cat,kitten,0 dogs=dog,puppy,1"'
        problem = f"no files of {' or '.join(empty)} in {sources}: expected {wanted}"
        raise StageError("; ".join([problem, *fetched.lines()]))
    if keep_sides and not fetched.sides:
        raise StageError(f"no train, validation or test folder in {sources}: fetch.keep_sides has nothing to keep")
