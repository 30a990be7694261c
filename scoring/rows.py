"""The answer for one picture as a row, and rows as Parquet, CSV or JSON."""

import csv
import io
from collections.abc import Iterable, Mapping
from typing import Final, Self

import msgspec
import pyarrow as arrow
from pyarrow import parquet

from serving.engine.wire import Answer, Because, Verdict
from shared.contract import Label

# A picture that the source does not give. The other codes of errors are those of the API.
UNREADABLE: Final = "unreadable"


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """What is said of one picture; without an answer, ``error`` says why. Numbers are as the API gives them."""

    key: str
    size: int | None = None  # bytes
    label: Label | None = None  # the likelier animal
    cats: float | None = None  # probabilities
    dogs: float | None = None
    verdict: Verdict | None = None
    unsure_because: Because | None = None
    familiarity: float | None = None
    brightness: float | None = None  # mean pixel value, 0..1
    width: int | None = None  # pixels of the upright picture
    height: int | None = None
    error: str | None = None
    milliseconds: float | None = None  # that a lane took
    evidence: list[list[float]] | None = None

    @classmethod
    def of(cls, key: str, answer: Answer) -> Self:
        """Make it from a lane's answer."""
        return cls(
            key=key,
            size=answer.size,
            label=answer.label,
            cats=answer.cats,
            dogs=answer.dogs,
            verdict=answer.verdict,
            unsure_because=answer.unsure_because,
            familiarity=answer.familiarity,
            brightness=answer.brightness,
            width=answer.width,
            height=answer.height,
            milliseconds=round(1000 * (answer.decode + answer.infer), 3),
            evidence=answer.evidence,
        )


SCHEMA: Final = arrow.schema(
    [
        arrow.field("key", arrow.string(), nullable=False),
        ("size", arrow.int64()),
        ("label", arrow.string()),
        ("cats", arrow.float64()),
        ("dogs", arrow.float64()),
        ("verdict", arrow.string()),
        ("unsure_because", arrow.string()),
        ("familiarity", arrow.float64()),
        ("brightness", arrow.float64()),
        ("width", arrow.int32()),
        ("height", arrow.int32()),
        ("error", arrow.string()),
        ("milliseconds", arrow.float64()),
    ]
)
WITH_EVIDENCE: Final = SCHEMA.append(arrow.field("evidence", arrow.list_(arrow.list_(arrow.float64()))))


def to_parquet(rows: Iterable[Row], about: Mapping[str, str], *, evidence: bool) -> bytes:
    """Make a Parquet file; ``about`` becomes its metadata."""
    schema = (WITH_EVIDENCE if evidence else SCHEMA).with_metadata(about)
    table = arrow.Table.from_pylist([msgspec.structs.asdict(row) for row in rows], schema)
    made = io.BytesIO()
    parquet.write_table(table, made, compression="zstd")
    return made.getvalue()


def to_json(rows: Iterable[Row], *, evidence: bool) -> str:
    """Make a line of JSON of each row."""
    return "".join(msgspec.json.encode(_plain(row, evidence)).decode() + "\n" for row in rows)


def to_csv(rows: Iterable[Row], *, evidence: bool, head: bool) -> str:
    """Make lines of CSV, with the names of the columns first; evidence is JSON in its column."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if head:
        writer.writerow((WITH_EVIDENCE if evidence else SCHEMA).names)
    for row in rows:
        values = _plain(row, evidence)
        if row.evidence is not None:
            values["evidence"] = msgspec.json.encode(row.evidence).decode()
        writer.writerow(values.values())
    return text.getvalue()


def _plain(row: Row, evidence: bool) -> dict[str, object]:
    values = msgspec.structs.asdict(row)
    if not evidence:
        del values["evidence"]
    return values
