"""Gather: make photos to learn from of the samples that a service kept and a person labelled.

    catsdogs gather samples labels.csv    # writes both into params.yaml, with a digest of what they hold
    catsdogs gather                       # as params.yaml says; `gather.samples: null` gathers nothing

Writes ``data/gathered/{production,hard}/{cats,dogs}/<id of the prediction>.png`` for ``fetch``: the pixels of each
sample and nothing else. ``data/gathered.csv`` says of each why it was kept and what model answered. Samples that were
forgotten are left out, whatever copies there are, and so are those that show both animals or none.

A sample that was kept by chance is of the side "production", also where there are more reasons: so that side is as
what users send. All others were kept because they are hard for some model, and are of the side "hard".
"""

import csv
import hashlib
import io
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

from shared import stores
from shared.contract import CLASSES
from shared.files import write_whole
from shared.pixels import RefusedImageError, pixels
from shared.samples import SUFFIX, TOMBSTONE, Sample, SampleError, bare, known
from training.decisions import decisions
from training.params import Gather
from training.split import FROM_PRODUCTION
from training.stage import PRODUCTION, StageError, whole_directory

REASONS: Final = {
    "forgotten": "forgotten",
    "neither": "neither cats nor dogs",
    "both": "both cats and dogs",
    "missing": "labelled, but no longer among the samples",
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
    """What there is, and how many labelled samples are left out by reason."""

    rows: list[Row] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)

    def table(self) -> str:
        """The rows as CSV."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([Row._fields, *self.rows])
        return text.getvalue()

    def report(self) -> dict[str, Any]:
        """The counts, for ``reports/gather.json``."""
        count = Counter((row.side, row.label) for row in self.rows)
        sides = {side: {label: count[side, label] for label in CLASSES} for side in FROM_PRODUCTION}
        return {"gathered": sides, "left_out": {reason: self.left_out[reason] for reason in REASONS}}


def gather(params: Gather, out: Path, table: Path) -> Gathered:
    """Write the photos below ``out``, and ``table``.

    Raises:
        StageError: samples or labels are not there, or cannot be read.
    """
    gathered = Gathered()
    with whole_directory(out) as aside:
        for row, picture in _labelled(params, gathered.left_out):
            folder = aside / row.side / row.label
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{row.id}{SUFFIX}").write_bytes(picture)
            gathered.rows.append(row)
    write_whole(table, gathered.table())
    return gathered


def digest(params: Gather) -> str:
    """SHA-256 that changes with what would be gathered.

    Raises:
        StageError: as :func:`gather`.
    """
    return hashlib.sha256(Gathered([row for row, _ in _labelled(params, Counter())]).table().encode()).hexdigest()


def absolute(params: Gather) -> Gather:
    """The same from any folder."""

    def place(said: str | None) -> str | None:
        return said if said is None or said.startswith(stores.SCHEMES) else str(Path(said).absolute())

    return Gather(place(params.samples), place(params.labels))


def _labelled(params: Gather, left_out: Counter[str]) -> Iterator[tuple[Row, bytes]]:
    """Each labelled sample of a cat or a dog, in the order of the ids; the others are counted."""
    if params.samples is None:
        return
    labels = Path(params.labels or "")
    if not labels.is_file():
        raise StageError(f"{labels}: no such file (gather.labels); `catsdogs label` writes it")
    if not params.samples.startswith(stores.SCHEMES) and not Path(params.samples).is_dir():
        raise StageError(f"{params.samples}: no such folder (gather.samples)")
    store = stores.opened(params.samples)
    try:
        for id_, label in sorted(decisions(labels).items()):
            if store.exists(id_ + TOMBSTONE):
                left_out["forgotten"] += 1
            elif label not in CLASSES:
                left_out[label] += 1
            elif not store.exists(id_ + SUFFIX):
                left_out["missing"] += 1
            elif found := _read(store.get(id_ + SUFFIX)):
                sample, picture = found
                side = PRODUCTION if "random" in sample.why else "hard"
                digest = hashlib.sha256(picture).hexdigest()
                yield Row(id_, label, side, "+".join(sample.why), sample.prediction.model, digest), picture
            else:
                left_out["broken"] += 1
    except OSError as error:
        raise StageError(f"{params.samples}: {error}") from error


def _read(file: bytes) -> tuple[Sample, bytes] | None:
    """What is known of a sample, and its picture; None for a file that is no sample, or damaged."""
    try:
        sample, picture = known(file), bare(file)
        pixels(picture)
    except (SampleError, RefusedImageError):
        return None
    return sample, picture
