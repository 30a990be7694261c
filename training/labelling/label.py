"""Label: say what samples show, on a page, or take what was said elsewhere.

    catsdogs label samples --as Anna
    catsdogs label samples --as Anna --settle
    catsdogs label samples --as Anna --import labels.json
    catsdogs label samples --export theirs.csv

Decisions go to the ledger (:mod:`training.decisions`); a person made each of them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import msgspec

from shared.samples import Sample
from training import decisions
from training.labelling import exchange
from training.labelling.evidence import SHIPPED, Evidence
from training.labelling.samples import Samples
from training.labelling.server import Labelling, serve
from training.stage import StageError


def page(address: str, ledger: Path, who: str, port: int, model: Path | None, *, settle: bool) -> None:
    """Serve the page until it is ended; see :func:`training.labelling.server.serve`.

    Raises:
        StageError: there are no samples, or the ledger cannot be read.
    """
    who = _person(who)
    samples, found = _found(address)
    before = decisions.read(ledger)
    standing = decisions.standing(before)
    disputed = sum(id_ in found and about.disputed for id_, about in standing.items())
    own = sum(id_ in found and who in about.labels for id_, about in standing.items())
    click.echo(f"{len(found):,} samples: {own:,} labelled by {who}; people disagree about {disputed:,}")
    if disputed and not settle:
        click.echo("--settle shows those that people disagree about")
    labelling = Labelling(samples, ledger, who, Evidence(model or SHIPPED), settle=settle)
    try:
        serve(labelling, port, lambda url: click.echo(f"{url} (Ctrl+C ends it)"))
    except KeyboardInterrupt:
        click.echo(f"\n{ledger}: {len(decisions.read(ledger)) - len(before):,} new lines")


def take(address: str, ledger: Path, who: str, source: Path) -> None:
    """Add the labels of a file to the ledger, but for those of samples that are not there, or were forgotten.

    Raises:
        StageError: there are no samples, or a file cannot be read.
    """
    who = _person(who)
    _, found = _found(address)
    lines = exchange.read(source, who, found)
    there = [line for line in lines if line.id in found]
    new = exchange.news(there, decisions.read(ledger))
    with _named(str(ledger)):
        decisions.append(ledger, new)
    absent = len(lines) - len(there)
    click.echo(f"{ledger}: {len(new):,} of {len(lines):,} labels are new; {absent:,} are of samples that are not there")


def give(address: str, ledger: Path, target: Path) -> None:
    """Write the labels of samples that are there to a file.

    Raises:
        StageError: there are no samples, a file cannot be read, or it is the ledger, which has more than what stands.
    """
    if target.resolve() == ledger.resolve():
        raise StageError(f"{target}: this is the ledger, which is never rewritten; name another file")
    _, found = _found(address)
    with _named(str(target)):
        count = exchange.write(target, address, found, decisions.read(ledger))
    click.echo(f"{target}: {count:,} of {len(found):,} samples have labels")


def _person(who: str) -> str:
    try:
        return msgspec.convert(who.strip(), decisions.Text)
    except msgspec.ValidationError as error:
        raise StageError(f"{who!r} is no name: 1 to 200 characters, without line breaks") from error


def _found(address: str) -> tuple[Samples, dict[str, Sample]]:
    samples = Samples(address)
    with _named(address):
        found = samples.listed()
    if not found:
        raise StageError(f"{address}: no samples there")
    return samples, found


@contextmanager
def _named(address: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StageError(f"{address}: {error.strerror or error}") from error
