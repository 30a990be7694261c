"""Audit: check every file, and record which ones to leave out and why. Nothing is deleted.

    catsdogs audit

``data/audit.csv`` has one row per file. Files with status ``kept`` are used; the others are not: ``corrupt`` (the
service would refuse it too), ``duplicate`` (the same bytes), ``near_duplicate`` (the same photo in another size or
quality, or mirrored) and ``cross_class`` (the same photo filed under both animals, so its label is unknown; of a photo
of a collection and one that a user sent, only the latter).

The next audit reads the file again: a photo that was kept stays kept when photos are added, so that the split, which
depends only on each kept photo's content, moves none of the old ones.
"""

import csv
import hashlib
import io
import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt
from PIL import Image

from shared.contract import CLASSES
from shared.files import write_whole
from shared.pixels import RefusedImageError, pixels
from training.stage import PRODUCTION, StageError, progress

THUMBNAIL: Final = 16  # side of the colour thumbnail that near-duplicates are found with
LEAST: Final = 3  # usable photos of a class: one to train on, one to validate on, one to test on
CHUNK: Final = 1024  # rows of the similarity matrix that are in memory at once


@dataclass(frozen=True)
class AuditRow:
    """One file: ``path`` relative to the raw folder, ``twin`` the path of the photo it repeats or contradicts."""

    path: str
    label: str
    sha256: str
    bytes: int
    status: str = "kept"
    twin: str = ""
    detail: str = ""


def audit(raw: Path, out: Path, near_duplicate: float) -> list[AuditRow]:
    """Audit every file below ``raw`` and write the table ``out``.

    Args:
        raw: the folder that ``fetch`` filled.
        out: the CSV to write; an earlier one at the same place says which photos were kept before.
        near_duplicate: least correlation of two 16×16 colour thumbnails for the photos to count as one.

    Raises:
        StageError: ``raw`` is missing, or too few of its photos can be kept.
    """
    files = sorted(path for label in CLASSES for path in raw.glob(f"*/{label}/*") if path.is_file())
    if not files:
        raise StageError(f"{raw}: no photos found; run `catsdogs fetch` first")
    kept_before = {row.sha256 for row in read(out) if row.status == "kept"} if out.exists() else set()
    rows, thumbnails = _decode(raw, files)

    # Photos kept before come first, then the largest files; beyond that the order only has to be stable. What users
    # sent comes after all others: a copy of a photo of the test side must not take its place.
    def rank(row: AuditRow) -> tuple[bool, bool, int, str]:
        return _sent(row), row.sha256 not in kept_before, -row.bytes, row.sha256

    order = sorted(range(len(rows)), key=lambda i: rank(rows[i]))
    rows = [rows[i] for i in order]
    rows = _leave_out_repeats(rows, np.stack([thumbnails[i] for i in order]), near_duplicate)
    rows.sort(key=lambda row: row.path)

    kept = Counter(row.label for row in rows if row.status == "kept")
    if min(kept[label] for label in CLASSES) < LEAST:
        left_out = Counter(row.status for row in rows if row.status != "kept")
        why = ", ".join(f"{count:,} {status}" for status, count in sorted(left_out.items())) or "none"
        raise StageError(
            f"{raw}: {kept['cats']:,} cats and {kept['dogs']:,} dogs are usable of {len(rows):,} files (left out: "
            f"{why}); training, validation and test need at least {LEAST} of each"
        )
    write_whole(out, _table(rows))
    return rows


def read(path: Path) -> list[AuditRow]:
    """Read the table that :func:`audit` wrote."""
    if not path.exists():
        raise StageError(f"{path}: not found; run `catsdogs audit` first")
    with path.open(newline="") as file:
        return [msgspec.convert(row, AuditRow, strict=False) for row in csv.DictReader(file)]


def summary(rows: list[AuditRow]) -> dict[str, Any]:
    """Files per status and class, for the report."""
    statuses = ("kept", "corrupt", "duplicate", "near_duplicate", "cross_class")
    count = Counter((row.status, row.label) for row in rows)
    return {
        "files": len(rows),
        **{status: {label: count[status, label] for label in CLASSES} for status in statuses},
    }


def dataset_digest(rows: list[AuditRow]) -> str:
    """SHA-256 over label and content of every kept photo, whatever its name."""
    lines = sorted(f"{row.label} {row.sha256}\n" for row in rows if row.status == "kept")
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _table(rows: list[AuditRow]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(AuditRow)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    return text.getvalue()


def _decode(raw: Path, files: list[Path]) -> tuple[list[AuditRow], list[npt.NDArray[np.float32]]]:
    def look(path: Path) -> tuple[AuditRow, npt.NDArray[np.float32]]:
        data = path.read_bytes()
        row = AuditRow(
            path=path.relative_to(raw).as_posix(),
            label=path.parent.name,
            sha256=hashlib.sha256(data).hexdigest(),
            bytes=len(data),
        )
        try:
            return row, _thumbnail(pixels(data))
        except RefusedImageError as error:
            return replace(row, status="corrupt", detail=f"{error.code}: {error}"), _NOTHING

    # Pillow decodes without the GIL, so threads are enough.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        looked = list(progress(pool.map(look, files), "auditing", total=len(files)))
    return [row for row, _ in looked], [thumbnail for _, thumbnail in looked]


_NOTHING: Final = np.zeros(THUMBNAIL * THUMBNAIL * 3 + 1, np.float32)


def _thumbnail(array: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Unit vector whose dot product with another is their correlation.

    The constant at its end gives flat pictures, which have no variation to correlate, something to match on.
    """
    small = Image.fromarray(array).resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
    flat = np.asarray(small, np.float32).ravel()
    vector = np.append(flat - flat.mean(), np.float32(1))
    unit: npt.NDArray[np.float32] = vector / np.linalg.norm(vector)
    return unit


def _mirrored(thumbnails: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    pictures = thumbnails[:, :-1].reshape(-1, THUMBNAIL, THUMBNAIL, 3)[:, :, ::-1].reshape(len(thumbnails), -1)
    return np.hstack([pictures, thumbnails[:, -1:]])


def _leave_out_repeats(rows: list[AuditRow], thumbnails: npt.NDArray[np.float32], threshold: float) -> list[AuditRow]:
    """Walk the rows in order, keep each photo that repeats no kept one, and leave out both where the labels differ.

    Of a photo and what a user sent, only the latter is left out: users must not change the sides of the collections.
    """
    rows = list(rows)
    for later, earlier in _similar(thumbnails, threshold):
        if rows[later].status == "corrupt" or rows[earlier].status == "corrupt":
            continue
        if rows[later].label != rows[earlier].label:
            alone = _sent(rows[later]) and not _sent(rows[earlier])  # those sent come later
            for one, other in ((later, earlier), (earlier, later))[: 1 if alone else 2]:
                rows[one] = replace(rows[one], status="cross_class", twin=rows[other].path)
        elif rows[later].status == "kept" and rows[earlier].status == "kept":
            same = rows[later].sha256 == rows[earlier].sha256
            status = "duplicate" if same else "near_duplicate"
            rows[later] = replace(rows[later], status=status, twin=rows[earlier].path)
    return rows


def _sent(row: AuditRow) -> bool:
    """Whether a user sent it."""
    return row.path.startswith(f"{PRODUCTION}/")


def _similar(thumbnails: npt.NDArray[np.float32], threshold: float) -> Iterator[tuple[int, int]]:
    """Pairs (later, earlier) of pictures that correlate at least ``threshold``, as they are or mirrored, in order."""
    mirrored = _mirrored(thumbnails)
    for start in progress(range(0, len(thumbnails), CHUNK), "comparing", unit=" chunks"):
        chunk = slice(start, start + CHUNK)
        likeness = np.maximum(thumbnails[chunk] @ thumbnails.T, mirrored[chunk] @ thumbnails.T)
        for row, column in np.argwhere(likeness >= threshold):
            if column < start + row:
                yield start + int(row), int(column)
