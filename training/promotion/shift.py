"""Shift: whether a round of the loop mends photos of a kind that the model got wrong; docs/loop.md has the whole round.

    python -m training.promotion.shift halve kind.zip shift    # one half to send, one to hold back
    python -m training.promotion.shift labels samples known.csv    # what was said of each, for `label --import`
    python -m training.promotion.shift measure before.onnx after.onnx shift/held-back

The last writes ``reports/shift.json`` and the table of docs/loop.md, and ends with status 1 if too little was mended.
For photos whose labels are known. In production a person labels, and what a sender says is a hint.
"""

import contextlib
import csv
import hashlib
import io
import tempfile
from pathlib import Path, PurePosixPath
from typing import Any, Final

import click
import msgspec
import numpy as np

from shared import stores
from shared.contract import CLASSES, Label
from shared.files import write_json, write_whole
from shared.folders import CLASS_FOLDERS
from shared.intervals import percent
from shared.pixels import Photo, RefusedImageError, decode
from shared.samples import HEAD_BYTES, SUFFIX, SampleError, known
from training import layouts, stage
from training.comparison import Comparison, compare
from training.graph import single_threaded
from training.photographs import Photographs, Photos, answers
from training.promotion.files import read_contract
from training.promotion.match import MARGINS
from training.scoreboard import into_page
from training.sources import File, PassedOverError, opened
from training.split import side

PAGE: Final = Path("docs/loop.md")
HEADING: Final = "## A real shift\n"


class Labelled:
    """Labelled photos of a folder or an archive that can be decoded."""

    def __init__(self, source: Path) -> None:
        """Read their files."""
        self.files: list[tuple[str, Label, bytes]] = []
        with tempfile.TemporaryDirectory() as scratch, opened(source, Path(scratch)) as files:
            for file in files:
                if (label := layouts.label(file, source.name, CLASS_FOLDERS)) and (data := _photo(file)):
                    self.files.append((file.name, label, data))
        if not self.files:
            raise stage.StageError(f"{source}: no photos in folders named Cat or cats and Dog or dogs")
        self.labels = np.array([CLASSES.index(label) for _, label, _ in self.files])

    def __len__(self) -> int:
        """Count them."""
        return len(self.files)

    def __getitem__(self, index: int) -> Photo:
        """Decode one."""
        return decode(self.files[index][2])


class Shift(msgspec.Struct, frozen=True):
    """Right answers of the model before and the one after, on the photos held back and on the test side."""

    before: str
    after: str
    held_back: Comparison
    test: Comparison

    @property
    def errors_left(self) -> float:
        """Errors on the photos held back of the model after, as a share of those of the one before."""
        before, after = (1 - right.value for right in (self.held_back.first, self.held_back.second))
        return after / before if before else 1.0

    @property
    def mended(self) -> bool:
        """Whether errors are at least halved, not by chance, and accuracy on the test side is within its margin."""
        significant = self.held_back.significant and self.errors_left <= 1 / 2
        return significant and self.test.difference.value > -MARGINS["accuracy"]

    def table(self) -> str:
        """The figures as Markdown."""
        rows = {"photos of the kind, held back": self.held_back, "test side of the collections": self.test}
        lines = [f"| wrong of | photos | {self.before} | {self.after} | p |", "|---|---|---|---|---|"]
        for name, row in rows.items():
            wrong = [percent(1 - right.value) for right in (row.first, row.second)]
            lines.append(f"| {name} | {row.n:,} | {' | '.join(wrong)} | {row.p_value:.2g} |")
        return "\n".join(lines) + "\n"


def measure(before: Path, after: Path, held_back: Path) -> Shift:
    """Compare two models on photos of a kind, and on the test side of the pipeline in this folder."""
    kind, test = Labelled(held_back), Photographs("test")
    sides: list[tuple[Photos, Any]] = [(kind, kind.labels), (test, np.array(test.labels))]
    rights, versions = [], list[str]()
    for model in (before, after):
        data = model.read_bytes()
        document = read_contract(data)
        network = single_threaded(data)
        versions.append(document.provenance.registry or document.version)
        rights.append(
            [
                answers(network, photos, document.second_look, versions[-1]).outputs.probabilities.argmax(1) == labels
                for photos, labels in sides
            ]
        )
    held, old = (compare(first, second) for first, second in zip(*rights, strict=True))
    return Shift(before=versions[0], after=versions[1], held_back=held, test=old)


def _photo(file: File) -> bytes | None:
    """The bytes of a photo; None for a file that is none."""
    try:
        data = file.read()
        decode(data)
    except (PassedOverError, RefusedImageError):
        return None
    return data


@click.group()
def main() -> None:
    """Show that a round of the loop mends what the model got wrong."""


@main.command("halve")
@click.argument("source", type=click.Path(exists=True, path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
def _halve(source: Path, out: Path) -> None:
    """Put each photo into OUT/streamed or OUT/held-back, by its content."""
    for number, (name, label, data) in enumerate(Labelled(source).files):
        half = "streamed" if side(hashlib.sha256(data).hexdigest(), 0.5, 0) == "train" else "held-back"
        write_whole(out / half / label / f"{number}{PurePosixPath(name).suffix}", data)


@main.command("labels")
@click.argument("samples")
@click.argument("out", type=click.Path(path_type=Path))
def _labels(samples: str, out: Path) -> None:
    """Write what was said of each sample by POST /feedback to a table for `catsdogs label --import`."""
    store = stores.opened(samples)
    names = sorted(name for name, _ in store.sizes() if name.endswith(SUFFIX))
    said: dict[str, str | None] = {}
    for name in names:
        with contextlib.suppress(SampleError):  # another picture
            said[name.removesuffix(SUFFIX)] = known(store.get(name, HEAD_BYTES)).feedback
    text = io.StringIO()
    rows = [(id_, label) for id_, label in said.items() if label]
    csv.writer(text, lineterminator="\n").writerows([("id", "label"), *rows])
    write_whole(out, text.getvalue())


@main.command("measure")
@click.argument("before", type=click.Path(exists=True, path_type=Path))
@click.argument("after", type=click.Path(exists=True, path_type=Path))
@click.argument("held_back", type=click.Path(exists=True, path_type=Path))
def _measure(before: Path, after: Path, held_back: Path) -> None:
    """Compare the models BEFORE and AFTER the round."""
    found = measure(before, after, held_back)
    document = msgspec.to_builtins(found) | {"errors_left": found.errors_left, "mended": found.mended}
    write_json(stage.REPORTS / "shift.json", document)
    if PAGE.exists():
        write_whole(PAGE, into_page(PAGE.read_text(), HEADING, found.table()))
    click.echo(found.table())
    click.echo(f"held back: {found.errors_left:.0%} of the errors are left")
    if not found.mended:
        raise SystemExit(1)


if __name__ == "__main__":
    try:
        main()
    except stage.StageError as error:
        raise SystemExit(f"Error: {error}") from error
