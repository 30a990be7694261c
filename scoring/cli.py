"""The commands ``score`` and ``sort``."""

import asyncio
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import click

from shared.addresses import without_secrets

if TYPE_CHECKING:
    from scoring.job import Summary

# Nobody waits for one picture here, and a machine that was asleep should not cost the pictures that were under way.
DEADLINE_SECONDS: Final = 60.0


@click.command()
@click.argument("source")
@click.option("--out", help="Folder or bucket for the results, Parquet files.")
@click.option("--csv", "form", flag_value="csv", help="Print the results as CSV instead.")
@click.option("--json", "form", flag_value="json", help="Print the results as JSON instead, an object a line.")
@click.option("--explain", is_flag=True, help="Keep the evidence map of each picture.")
@click.option("--model", help="Model file.  [CATSDOGS_MODEL, or the one that ships]")
@click.option("--ray", metavar="ADDRESS", help="Use a Ray cluster, as host:6379; auto for the one of this machine.")
def score(
    source: str,
    out: str | None,
    form: Literal["csv", "json"] | None,
    explain: bool,
    model: str | None,
    ray: str | None,
) -> None:
    """Classify all pictures of SOURCE.

    SOURCE is a folder, a zip or tar file, a CSV or Parquet file of addresses, or a bucket (s3://, gs://, az://). A
    picture without an answer has a row with the code of its error. Any number of workers may share one --out; a run
    that was stopped goes on where it was, and one that is complete writes nothing.

    \b
    catsdogs score photos --out scores
    catsdogs score s3://bucket/photos --out s3://bucket/scores
    catsdogs score photos.zip --csv > scores.csv
    catsdogs score s3://bucket/photos --out s3://bucket/scores --ray auto
    """
    if (out is None) == (form is None):
        raise click.UsageError("give one of --out, --csv and --json")
    if ray is not None and out is None:
        raise click.UsageError("--ray needs --out, which all machines of the cluster write to")
    from serving import extras
    from serving.engine.lane import Zygote
    from serving.settings import SettingsError, from_environment

    if ray is not None and find_spec("ray") is None:
        raise click.UsageError(f"--ray needs Ray, which comes with: {extras.hint('cluster')}")
    try:
        lanes = None if ray is None else 1  # in each of the cluster's workers; here it says which model answers
        settings = from_environment(model=model, deadline_seconds=DEADLINE_SECONDS, lanes=lanes)
    except SettingsError as error:
        raise click.UsageError(str(error)) from error
    # It imports what lanes need while this process imports what tables need.
    zygote = Zygote()
    zygote.start()
    try:
        from scoring import destinations, run
        from scoring.errors import ScoreError
        from serving.local import ModelError

        try:
            if out is None:
                assert form is not None
                asyncio.run(run.printed(settings, zygote, source, form, explain=explain))
                return
            destination = destinations.opened(out)
            with tempfile.TemporaryDirectory() as scratch:
                found = run.listed(source, destination, Path(scratch))
                summary = asyncio.run(run.kept(settings, zygote, found, destination, explain=explain, ray=ray))
        except (ScoreError, ModelError, OSError) as error:
            raise click.ClickException(without_secrets(str(error))) from error
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        zygote.kill()
    click.echo(_table(summary))


@click.command()
@click.argument("result", required=False, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("folder", required=False, type=click.Path(file_okay=False, path_type=Path))
@click.option("--link", is_flag=True, help="Make symbolic links instead of copies.")
@click.option(
    "--undo",
    metavar="FOLDER",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Remove what was put into FOLDER, unless it has changed since.",
)
def sort(result: Path | None, folder: Path | None, link: bool, undo: Path | None) -> None:
    """Put the pictures of RESULT, which `catsdogs score --out` made, into FOLDER by their verdicts.

    FOLDER gets the folders cats, dogs, unsure, and unreadable for files without an answer. The pictures stay where they
    are, and nothing in FOLDER is replaced.

    \b
    catsdogs sort scores sorted
    catsdogs sort --undo sorted
    """
    from scoring import sort as sorting
    from scoring.errors import ScoreError

    if (result is None or folder is None) == (undo is None):
        raise click.UsageError("give RESULT and FOLDER, or --undo FOLDER")
    try:
        if undo is not None:
            removed, left = sorting.undo(undo)
            click.echo(f"{removed:>12,}  removed")
            for path in left:
                click.echo(f"{path}: changed since it was put there, and left", err=True)
            return
        assert result is not None
        assert folder is not None
        counts = sorting.sort(result, folder, link=link)
    except (ScoreError, OSError) as error:
        raise click.ClickException(without_secrets(str(error))) from error
    for name, number in sorted(counts.items()):
        click.echo(f"{number:>12,}  {name}")


def _table(summary: "Summary") -> str:
    lines = [f"{summary.pictures:>12,}  pictures, {summary.pictures_per_second:,.0f} a second"]
    for part in (summary.verdicts, summary.errors):
        lines += [f"{number:>12,}  {name}" for name, number in part.items()]
    return "\n".join(lines)
