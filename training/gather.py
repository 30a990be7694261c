"""Gather: make photos to learn from of the samples that a service kept and a person labelled.

    catsdogs gather samples labels.csv    # writes both into params.yaml, with a digest of what they hold
    catsdogs gather                       # as params.yaml says; `gather.samples: null` gathers nothing

Writes ``data/gathered/{production,hard}/{cats,dogs}/<id of the prediction>.png`` for ``fetch``: the pixels of each
sample and nothing else. ``data/gathered.csv`` says of each why it was kept and what model answered. Samples that were
forgotten are left out, whatever copies there are, and so are those that show both animals or none.

A sample that was kept by chance is of the side "production", also where there are more reasons: so that side is as
what users send. All others were kept because they are hard for some model, and are of the side "hard".

What was gathered stays gathered when the service's caps delete the sample, until it is forgotten.
"""

import contextlib
import csv
import hashlib
import io
from collections import Counter
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

from shared import stores
from shared.contract import CLASSES
from shared.files import write_whole
from shared.pixels import RefusedImageError, pixels
from shared.samples import SUFFIX, TOMBSTONE, SampleError, bare, known
from training.decisions import Standing, read, standing
from training.params import Gather
from training.split import FROM_PRODUCTION
from training.stage import PRODUCTION, StageError, whole_directory

READERS: Final = 16  # a bucket answers a request in tens of milliseconds
AT_ONCE: Final = 256  # files of 150 kB that are in memory
REASONS: Final = {
    "forgotten": "forgotten",
    "neither": "neither cats nor dogs",
    "both": "both cats and dogs",
    "disputed": "people disagree about them; `catsdogs label --settle` shows them",
    "unlabelled": "nobody labelled them",
    "missing": "labelled, but not among the samples, and never gathered",
    "broken": "not a sample, or damaged",
}


class Row(NamedTuple):
    """A sample that is learned from or tested on; ``sha256`` is that of its file without what is known of it."""

    id: str
    label: str
    side: str
    why: str
    model: str
    sha256: str


@dataclass
class Gathered:
    """What there is, and how many samples are left out by reason."""

    rows: list[Row] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)

    def table(self) -> str:
        """The rows as CSV."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([Row._fields, *self.rows])
        return text.getvalue()

    @property
    def digest(self) -> str:
        """SHA-256 that changes with what was gathered."""
        return hashlib.sha256(self.table().encode()).hexdigest()

    def report(self) -> dict[str, Any]:
        """The counts, for ``reports/gather.json``."""
        count = Counter((row.side, row.label) for row in self.rows)
        sides = {side: {label: count[side, label] for label in CLASSES} for side in FROM_PRODUCTION}
        return {"gathered": sides, "left_out": {reason: self.left_out[reason] for reason in REASONS}}


def gather(params: Gather, out: Path, table: Path, *, checked: bool = False) -> Gathered:
    """Write the photos below ``out``, and ``table``.

    Args:
        params: where samples and labels are.
        out: the folder, replaced as a whole.
        table: the CSV to write; an earlier one says what is in ``out``.
        checked: refuse samples or labels that are others than those of ``params.digest``.

    Raises:
        StageError: samples or labels are not there, cannot be read, or have changed.
    """
    gathered = Gathered()
    with whole_directory(out) as aside:
        for row, picture in _labelled(params, Earlier(out, table), gathered.left_out):
            _place(aside, row).write_bytes(picture)
            gathered.rows.append(row)
        sided = _sided(gathered.rows)
        for before, after in zip(gathered.rows, sided, strict=True):
            if before != after:
                _place(aside, before).rename(_place(aside, after))
        gathered.rows = sided
        if checked and params.samples is not None and gathered.digest != params.digest:
            raise StageError(
                f"what {params.samples} and {params.labels} hold has changed since it was gathered; run "
                f"`catsdogs gather {params.samples} {params.labels}` again"
            )
    write_whole(table, gathered.table())
    return gathered


def digest(params: Gather, out: Path, table: Path) -> str:
    """What :attr:`Gathered.digest` would be, without writing anything; raises as :func:`gather`."""
    return Gathered(_sided([row for row, _ in _labelled(params, Earlier(out, table), Counter())])).digest


def absolute(params: Gather) -> Gather:
    """The same from any folder."""

    def place(said: str | None) -> str | None:
        return said if said is None or said.startswith(stores.SCHEMES) else str(Path(said).absolute())

    return Gather(place(params.samples), place(params.labels))


class Earlier:
    """What an earlier run gathered. It stays in the data set when the service's caps have deleted the sample."""

    def __init__(self, out: Path, table: Path) -> None:
        """Take the folder and the table; neither need be there."""
        self._out = out
        self._rows: dict[str, Row] = {}
        if table.exists():
            with table.open(newline="") as file:
                self._rows = {row["id"]: Row(**row) for row in csv.DictReader(file)}

    def get(self, id_: str, label: str) -> tuple[Row, bytes] | None:
        """A sample of it, with the label that it has now."""
        if (row := self._rows.get(id_)) is None:
            return None
        path = self._out / row.side / row.label / f"{id_}{SUFFIX}"
        return (row._replace(label=label), path.read_bytes()) if path.exists() else None


def _place(out: Path, row: Row) -> Path:
    path = out / row.side / row.label / f"{row.id}{SUFFIX}"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _sided(rows: list[Row]) -> list[Row]:
    """The rows; a picture that chance kept is of the side "production", also where it was sent and kept more often.

    The audit keeps one of them, and users send those again that the model was unsure of: without this the side would
    lose hard pictures.
    """
    by_chance = {row.sha256 for row in rows if row.side == PRODUCTION}
    return [row._replace(side=PRODUCTION) if row.sha256 in by_chance else row for row in rows]


def _labelled(params: Gather, earlier: Earlier, left_out: Counter[str]) -> Iterator[tuple[Row, bytes]]:
    """Each labelled sample of a cat or a dog, in the order of the ids; the others are counted."""
    if params.samples is None:
        return
    store, said = _opened(params.samples, Path(params.labels or ""))
    try:
        names = {name for name, _ in store.sizes()}
        pets = _pets(said, names, left_out)
        found = 0
        for (id_, label), file in zip(pets, _files(store, [id_ for id_, _ in pets], names), strict=True):
            if gathered := earlier.get(id_, label) if file is None else _row(id_, label, file):
                found += 1
                yield gathered
            else:
                left_out["missing" if file is None else "broken"] += 1
    except OSError as error:
        raise StageError(f"{params.samples}: {error}") from error
    if pets and not found:
        raise StageError(f"{params.samples}: none of the {len(pets):,} samples that have labels is there")


def _opened(samples: str, labels: Path) -> tuple[stores.Store, dict[str, Standing]]:
    """The samples, and what people said of them."""
    if not labels.is_file():
        raise StageError(f"{labels}: no such file (gather.labels); `catsdogs label` writes it")
    if not samples.startswith(stores.SCHEMES) and not Path(samples).is_dir():
        raise StageError(f"{samples}: no such folder (gather.samples)")
    return stores.opened(samples), standing(read(labels))


def _pets(said: dict[str, Standing], names: AbstractSet[str], left_out: Counter[str]) -> list[tuple[str, str]]:
    """Ids and labels of the samples of a cat or a dog, in the order of the ids; the others are counted."""
    pets: list[tuple[str, str]] = []
    for id_ in sorted(said.keys() | {name.removesuffix(SUFFIX) for name in names if name.endswith(SUFFIX)}):
        about = said.get(id_, Standing())
        if id_ + TOMBSTONE in names:
            left_out["forgotten"] += 1
        elif about.label in CLASSES:
            pets.append((id_, about.label))
        else:
            left_out[about.label or ("disputed" if about.disputed else "unlabelled")] += 1
    return pets


def _files(store: stores.Store, ids: list[str], names: AbstractSet[str]) -> Iterator[bytes | None]:
    """The samples' files in this order, None for one that is not there; some at a time, as a bucket takes a while."""

    def get(id_: str) -> bytes | None:
        with contextlib.suppress(FileNotFoundError):  # deleted since it was listed
            return store.get(id_ + SUFFIX) if id_ + SUFFIX in names else None
        return None

    with ThreadPoolExecutor(READERS) as pool:
        for start in range(0, len(ids), AT_ONCE):
            yield from pool.map(get, ids[start : start + AT_ONCE])


def _row(id_: str, label: str, file: bytes) -> tuple[Row, bytes] | None:
    """A sample's row and its picture; None for a file that is no sample, or damaged."""
    try:
        sample, picture = known(file), bare(file)
        pixels(picture)
    except (SampleError, RefusedImageError):
        return None
    side = PRODUCTION if "random" in sample.why else "hard"
    sha256 = hashlib.sha256(picture).hexdigest()
    return Row(id_, label, side, "+".join(sample.why), sample.prediction.model, sha256), picture
