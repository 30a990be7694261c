"""The commands."""

import json
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NoReturn

import click

from ops.bench import machine, requests, table
from ops.bench.errors import BenchError
from ops.bench.measure import ARRANGEMENTS, PARTS, Wanted, measure
from ops.bench.processes import ROOT
from ops.bench.rounds import Plan
from ops.bench.servers import SERVERS, Programs, also, chosen
from shared.files import write_whole

REPORT: Final = ROOT / "reports" / "bench-serve.json"
SOAK: Final = ROOT / "reports" / "soak.json"
SIEGE: Final = ROOT / "reports" / "siege.json"
LOOP: Final = ROOT / "reports" / "loop.json"
FRONT: Final = ROOT / "reports" / "front.json"
BATCHES: Final = ROOT / "reports" / "batches.json"
# The page whose tables `docs` fills in.
PAGE: Final = ROOT / "docs" / "benchmarks.md"


def default_service() -> Path:
    """``catsdogs`` in ``.venv`` if there is one, else the one beside this Python."""
    plain = ROOT / ".venv" / "bin" / "catsdogs"
    return plain if plain.exists() else Path(sys.executable).with_name("catsdogs")


class Default(click.Group):
    """A group that runs its first command if none is named."""

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        """Insert the command."""
        if not args or args[0] not in {*self.commands, "--help", "-h"}:
            args = ["run", *args]
        return super().parse_args(context, args)


@click.group(cls=Default, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
def main() -> None:
    """Measure how fast the service answers. Without a command: run.

    \b
    python -m ops.bench                                           everything, about 40 minutes on two cores
    python -m ops.bench --quick --only ours,raw                   four minutes, while working on the service
    python -m ops.bench --arrangement separate --seconds 3 --rounds 1
    python -m ops.bench --only ours-int8 --also old=../old        before and after, in one run
    python -m ops.bench --scenario fairness
    python -m ops.bench soak --requests 100000
    python -m ops.bench siege --minutes 60
    python -m ops.bench loop --share 0.1
    python -m ops.bench front --also old=../old
    python -m ops.bench batches
    python -m ops.bench docs                                      put the tables into the documentation
    """
    # SIGTERM unwinds the stack: servers are ended and temporary files removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


@main.command()
@click.option("--quick", is_flag=True, help="One round of 3 seconds, only the first variant of each peer; no report.")
@click.option("--only", default="", metavar="NAMES", help=f"Which servers: {', '.join(e.name for e in SERVERS)}.")
@click.option(
    "--also", "others", multiple=True, metavar="NAME=CHECKOUT", help="The service of another checkout; may be repeated."
)
@click.option(
    "--arrangement",
    "arrangements",
    multiple=True,
    type=click.Choice(ARRANGEMENTS),
    help="The load generator on the servers' cores, or on others; may be repeated.  [both]",
)
@click.option("--clients", default="1,8,32,128", show_default=True, metavar="NUMBERS", help="Levels of load if shared.")
@click.option("--rounds", type=click.IntRange(1), help="Turns of each server at each level.  [3]")
@click.option("--seconds", type=click.IntRange(1), help="Measured seconds of a turn.  [8]")
@click.option("--warm", default=1, show_default=True, type=click.IntRange(1), help="Seconds before, not measured.")
@click.option("--scenario", multiple=True, type=click.Choice(PARTS), help="Only these parts; all but speed are shared.")
@click.option("--tune/--no-tune", default=None, help="Try the variants of each peer first, and keep the fastest.")
@click.option("--photos", type=click.Path(exists=True, path_type=Path), help="Folder or zip of your own photos.")
@click.option("--service", type=click.Path(path_type=Path), default=default_service, help="The `catsdogs` to measure.")
@click.option(
    "--peers",
    type=click.Path(path_type=Path),
    default=ROOT / ".venv-bench" / "bin" / "python",
    help="The Python that has the peers.  [.venv-bench/bin/python]",
)
@click.option("--out", type=click.Path(path_type=Path), help="The report.  [reports/bench-serve.json if all is run]")
def run(  # noqa: PLR0913, PLR0917  # options are arguments
    quick: bool,
    only: str,
    others: tuple[str, ...],
    arrangements: tuple[str, ...],
    clients: str,
    rounds: int | None,
    seconds: int | None,
    warm: int,
    scenario: tuple[str, ...],
    tune: bool | None,
    photos: Path | None,
    service: Path,
    peers: Path,
    out: Path | None,
) -> None:
    """Compare the service with the bare limit of the machine and with its peers."""
    whole = not (quick or only or others or arrangements or scenario or photos)
    arrangements = arrangements or ARRANGEMENTS
    parts = set(scenario or (PARTS if "shared" in arrangements else ("speed",)))
    try:
        with tempfile.TemporaryDirectory(prefix="bench-") as name:
            made = requests.make(Path(name) / "photos", photos)
            plan = Plan(
                rounds=rounds or (1 if quick else 3),
                seconds=seconds or (3 if quick else 8),
                warm=warm,
                retakes=2 if whole else 0,
                programs=Programs(service.absolute(), peers.absolute()),
                first=requests.form(made.files["small"][0]),
            )
            wanted = Wanted(
                specs=[*chosen(only), *map(also, others)],
                arrangements=arrangements,
                clients=[int(level) for level in clients.split(",")],
                parts=parts,
                tune=whole if tune is None else tune,
            )
            document = measure(plan, wanted, made, Path(name))
    except (BenchError, ValueError) as error:
        raise click.UsageError(str(error)) from error
    document = machine.rounded(document)
    click.echo(f"\n{table.report(document)}")
    out = out or (REPORT if whole else None)
    if out:
        machine.write_json(out, document)
        write_whole(out.with_suffix(".md"), table.report(document).encode())


@main.command()
@click.option("--requests", "count", default=100_000, show_default=True, type=click.IntRange(1000))
@click.option("--service", type=click.Path(path_type=Path), default=default_service, help="The `catsdogs` to measure.")
@click.option("--seed", default=0, show_default=True, help="Of the order of requests.")
@click.option("--out", type=click.Path(path_type=Path), default=SOAK, help="The report.  [reports/soak.json]")
def soak(count: int, service: Path, seed: int, out: Path) -> None:
    """Send many requests, good and bad, and compare the first tenth with the last.

    \b
    python -m ops.bench soak --requests 100000
    """
    from ops.bench import soak as soaking

    try:
        document = soaking.soak(count, Programs(service.absolute(), service.absolute()), seed)
    except BenchError as error:
        raise click.UsageError(str(error)) from error
    _finish(document, out, table.soak)


@main.command()
@click.option("--minutes", default=60.0, show_default=True, type=click.FloatRange(0, min_open=True))
@click.option("--service", type=click.Path(path_type=Path), default=default_service, help="The `catsdogs` to measure.")
@click.option("--seed", default=0, show_default=True, help="Of the order of misdeeds.")
@click.option("--out", type=click.Path(path_type=Path), default=SIEGE, help="The report.  [reports/siege.json]")
def siege(minutes: float, service: Path, seed: int, out: Path) -> None:
    """Let a tenth of the clients misbehave in turns, and compare what the others get.

    \b
    python -m ops.bench siege --minutes 10
    """
    from ops.bench import siege as besieging

    try:
        document = besieging.siege(minutes, Programs(service.absolute(), service.absolute()), seed)
    except BenchError as error:
        raise click.UsageError(str(error)) from error
    _finish(document, out, table.siege)


@main.command()
@click.option(
    "--share", default=1.0, show_default=True, type=click.FloatRange(0.001, 1), help="Of requests and samples."
)
@click.option("--rounds", default=10, show_default=True, type=click.IntRange(1), help="Turns of each service.")
@click.option("--seconds", default=5, show_default=True, type=click.IntRange(1), help="Measured seconds of a turn.")
@click.option("--service", type=click.Path(path_type=Path), default=default_service, help="The `catsdogs` to measure.")
@click.option("--out", type=click.Path(path_type=Path), default=LOOP, help="The report.  [reports/loop.json]")
def loop(share: float, rounds: int, seconds: int, service: Path, out: Path) -> None:
    """Keep samples and ask a challenger: is what matters kept, within the caps, and does a client notice?

    \b
    python -m ops.bench loop                  3,000 photos, 10,000 requests, 100,000 samples
    python -m ops.bench loop --share 0.1
    """
    from ops.bench import loop as looping

    try:
        with tempfile.TemporaryDirectory(prefix="bench-") as name:
            document = looping.loop(
                requests.make(Path(name) / "photos", None),
                Path(name),
                Programs(service.absolute(), service.absolute()),
                looping.Amount(int(3_000 * share), int(10_000 * share), int(100_000 * share), rounds, seconds),
            )
    except BenchError as error:
        raise click.UsageError(str(error)) from error
    _finish(document, out, table.loop)


@main.command()
@click.option("--also", "others", multiple=True, metavar="NAME=CHECKOUT", help="Another checkout; may be repeated.")
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(1), help="Turns of each checkout.")
@click.option("--seconds", default=5, show_default=True, type=click.IntRange(1), help="Measured seconds of a turn.")
@click.option("--service", type=click.Path(path_type=Path), default=default_service, help="The `catsdogs` to measure.")
@click.option("--out", type=click.Path(path_type=Path), default=FRONT, help="The report.  [reports/front.json]")
def front(others: tuple[str, ...], rounds: int, seconds: int, service: Path, out: Path) -> None:
    """Measure the front process by itself, with lanes that answer at once: what many lanes could get out of it.

    \b
    python -m ops.bench front
    python -m ops.bench front --also old=../old
    """
    from ops.bench import front as fronting

    try:
        with tempfile.TemporaryDirectory(prefix="bench-") as name:
            document = fronting.front(
                requests.make(Path(name) / "photos", None),
                Path(name),
                Programs(service.absolute(), service.absolute()),
                [*map(also, others)],
                fronting.Amount(rounds, seconds),
            )
    except (BenchError, ValueError) as error:
        raise click.UsageError(str(error)) from error
    _finish(document, out, table.front)


@main.command()
@click.option("--rounds", default=9, show_default=True, type=click.IntRange(1), help="Batches of each kind and line.")
@click.option("--service", type=click.Path(path_type=Path), default=default_service, help="The `catsdogs` to measure.")
@click.option("--out", type=click.Path(path_type=Path), default=BATCHES, help="The report.  [reports/batches.json]")
def batches(rounds: int, service: Path, out: Path) -> None:
    """Send batches of 64 photos as forms and as base64, on this machine and over slower lines.

    \b
    python -m ops.bench batches
    python -m ops.bench batches --rounds 3
    """
    from ops.bench import batches as batching

    try:
        with tempfile.TemporaryDirectory(prefix="bench-") as name:
            made = requests.make(Path(name) / "photos", None)
            document = batching.batches(made, Programs(service.absolute(), service.absolute()), rounds)
    except BenchError as error:
        raise click.UsageError(str(error)) from error
    _finish(document, out, table.batches)


def _finish(document: dict[str, Any], out: Path, tabulate: Callable[[dict[str, Any]], str]) -> NoReturn:
    """Write and print a report; the exit code is 1 if it has failures."""
    document = machine.rounded(document)
    machine.write_json(out, document)
    click.echo(f"\n{tabulate(document)}")
    for failure in document["failures"]:
        click.echo(failure, err=True)
    sys.exit(1 if document["failures"] else 0)


@main.command()
def docs() -> None:
    """Put the tables of the reports into the documentation."""
    others = {path.stem: json.loads(path.read_text()) for path in (SOAK, SIEGE, LOOP, FRONT, BATCHES) if path.exists()}
    page = table.into_page(PAGE.read_text(), json.loads(REPORT.read_text()), others)
    write_whole(PAGE, page.encode())
