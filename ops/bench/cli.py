"""The commands."""

import datetime
import json
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

import click

from ops.bench import machine, race, requests, scenarios, table
from ops.bench.entrants import ENTRANTS, Programs, chosen, versions
from ops.bench.errors import BenchError
from ops.bench.processes import ROOT
from shared import hardware
from shared.files import write_whole

REPORT: Final = ROOT / "reports" / "bench-serve.json"
SOAK: Final = ROOT / "reports" / "soak.json"
LIBRARIES: Final = ("onnxruntime", "numpy", "pillow")
SERVERS: Final = ("uvicorn", "starlette")
PEERS: Final = ("fastapi", "litserve", "bentoml", "pydantic")
SCENARIOS: Final = ("speed", "memory", "overload", "fairness")


def default_service() -> Path:
    """The plain installation's ``catsdogs`` where there is one, else the one beside this Python."""
    plain = ROOT / ".venv" / "bin" / "catsdogs"
    return plain if plain.exists() else Path(sys.executable).with_name("catsdogs")


class Default(click.Group):
    """A group whose first command runs where none is named."""

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        """Put the command in front."""
        if not args or args[0] not in {*self.commands, "--help", "-h"}:
            args = ["run", *args]
        return super().parse_args(context, args)


@click.group(cls=Default, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
def main() -> None:
    """Measure how fast the service answers. Without a command: run.

    \b
    python -m ops.bench                                   everything, about 25 minutes
    python -m ops.bench --quick --only ours,raw           two minutes, while working on the service
    python -m ops.bench --scenario fairness
    python -m ops.bench soak --requests 100000
    python -m ops.bench readme                            reports into README.md
    """
    # Ended from outside, it still ends the servers that it started and leaves no photos behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


@main.command()
@click.option("--quick", is_flag=True, help="One round of 3 seconds, no trying of variants, nothing written.")
@click.option("--only", default="", metavar="NAMES", help=f"Who takes part: {', '.join(e.name for e in ENTRANTS)}.")
@click.option("--clients", default="1,8,32,128", show_default=True, metavar="NUMBERS", help="Levels of load.")
@click.option("--rounds", type=click.IntRange(1), help="Turns of each at each level.  [3]")
@click.option("--seconds", type=click.IntRange(1), help="Measured seconds of a turn.  [8]")
@click.option("--warm", default=1, show_default=True, type=click.IntRange(1), help="Seconds before, not measured.")
@click.option("--scenario", multiple=True, type=click.Choice(SCENARIOS), help="Only these parts; may be repeated.")
@click.option("--tune/--no-tune", default=None, help="Try the peers' variants first, and keep the best.")
@click.option("--photos", type=click.Path(exists=True, path_type=Path), help="Folder or zip of your own photos.")
@click.option("--service", type=click.Path(path_type=Path), default=default_service, help="The `catsdogs` to measure.")
@click.option(
    "--peers",
    type=click.Path(path_type=Path),
    default=ROOT / ".venv-bench" / "bin" / "python",
    help="The Python that has the peers.  [.venv-bench/bin/python]",
)
@click.option(
    "--out", type=click.Path(path_type=Path), help="The report.  [reports/bench-serve.json if all is measured]"
)
def run(  # noqa: PLR0913, PLR0917  # options are arguments
    quick: bool,
    only: str,
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
    """Compare the service with the machine's limit and with its peers."""
    parts = set(scenario or SCENARIOS)
    whole = not (quick or only or scenario or photos)
    try:
        with tempfile.TemporaryDirectory(prefix="bench-") as name:
            made = requests.make(Path(name) / "photos", photos)
            plan = race.Plan(
                entrants=chosen(only),
                clients=[int(level) for level in clients.split(",")],
                rounds=rounds or (1 if quick else 3),
                seconds=seconds or (3 if quick else 8),
                warm=warm,
                retakes=2 if whole else 0,
                programs=Programs(service.absolute(), peers.absolute()),
                mixed=made.write(Path(name) / "mixed", requests.MIX),
                large=made.write(Path(name) / "large", {"large": 1}),
                first=requests.form(made.files["small"][0]),
            )
            document = measure(plan, made, parts, tune=whole if tune is None else tune)
    except (BenchError, ValueError) as error:
        raise click.UsageError(str(error)) from error
    document = machine.rounded(document)
    click.echo(f"\n{table.report(document)}")
    out = out or (REPORT if whole else None)
    if out:
        machine.write_json(out, document)
        write_whole(out.with_suffix(".md"), table.report(document).encode())


def measure(plan: race.Plan, photos: requests.Photos, parts: set[str], *, tune: bool) -> dict[str, Any]:
    """Measure ``parts``; returns the report."""
    peers = any(entrant.kind == "peer" for entrant in plan.entrants)
    document: dict[str, Any] = {
        "written": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": hardware.describe(),
        "versions": found_versions(plan.programs, peers=peers),
        "settings": {
            "rounds": plan.rounds,
            "seconds": plan.seconds,
            "warm": plan.warm,
            "clients": plan.clients,
            "mix": requests.MIX,
            "photo_bytes": {size: [len(data) for data in files] for size, files in photos.files.items()},
        },
    }
    turns = race.Turns(plan)
    if tune and parts & {"speed", "memory"}:
        turns.tune()
    if "speed" in parts:
        turns.run()
    document |= turns.result()
    if "memory" in parts:
        document["memory"] = turns.memory()
    ours = next((entrant for entrant in plan.entrants if entrant.kind == "ours"), None)
    if ours and "overload" in parts:
        document["overload"] = scenarios.overload(ours, plan.programs, photos, seconds=plan.seconds)
    if ours and "fairness" in parts:
        document["fairness"] = scenarios.fairness(ours, plan.programs, photos)
    return document


def found_versions(programs: Programs, *, peers: bool) -> dict[str, str]:
    """Versions of what is measured.

    Raises:
        BenchError: the service and its peers would run on different libraries, and the comparison be of those.
    """
    ours = versions(programs.python, (*LIBRARIES, *SERVERS))
    if not peers:
        return ours
    theirs = versions(programs.peers, (*LIBRARIES, *SERVERS, *PEERS))
    apart = [name for name in (*LIBRARIES, *SERVERS) if ours[name] != theirs[name]]
    if apart:
        wanted = " ".join(f"{name}=={ours[name]}" for name in apart)
        raise BenchError(f"the peers run on other versions than the service: {programs.peers} -m pip install {wanted}")
    return theirs


@main.command()
@click.option("--requests", "count", default=100_000, show_default=True, type=click.IntRange(1000))
@click.option("--service", type=click.Path(path_type=Path), default=default_service, help="The `catsdogs` to measure.")
@click.option("--seed", default=0, show_default=True, help="Of the order of requests.")
@click.option("--out", type=click.Path(path_type=Path), default=SOAK, help="The report.  [reports/soak.json]")
def soak(count: int, service: Path, seed: int, out: Path) -> None:
    """Send very many requests, good and bad, and compare the first tenth with the last.

    \b
    python -m ops.bench soak --requests 100000
    """
    from ops.bench import soak as soaking

    try:
        document = soaking.soak(count, Programs(service.absolute(), service.absolute()), seed)
    except BenchError as error:
        raise click.UsageError(str(error)) from error
    document = machine.rounded(document)
    machine.write_json(out, document)
    click.echo(f"\n{table.soak(document)}")
    for failure in document["failures"]:
        click.echo(failure, err=True)
    sys.exit(1 if document["failures"] else 0)


@main.command()
def readme() -> None:
    """Put the tables of the reports into README.md."""
    path = ROOT / "README.md"
    soaked = json.loads(SOAK.read_text()) if SOAK.exists() else None
    write_whole(path, table.into_readme(path.read_text(), json.loads(REPORT.read_text()), soaked).encode())
