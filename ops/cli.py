"""The subcommands of ``catsdogs`` for a deployed service."""

import asyncio
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
import msgspec


class ShareOrTest(click.FloatRange):
    """A share in 0..1, or the word ``test``."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Read it."""
        return value if value == "test" else super().convert(value, param, ctx)


@click.command()
@click.argument("paths", metavar="JOURNAL...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--url", help="URL of the service; its model is the reference for drift.")
@click.option(
    "--contract", type=click.Path(path_type=Path), help="File with the answer of GET /model, instead of --url."
)
@click.option("--key", envvar="CATSDOGS_KEY", help="API key for --url, if the service requires one.  [CATSDOGS_KEY]")
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path), help="Write the figures to this file; - for stdout."
)
@click.option("--html", "html_file", type=click.Path(path_type=Path), help="Write an HTML page to this file.")
def report(
    paths: tuple[Path, ...],
    url: str | None,
    contract: Path | None,
    key: str | None,
    json_file: Path | None,
    html_file: Path | None,
) -> None:
    """Report how the model does in production, from the service's journal.

    JOURNAL is the folder that CATSDOGS_JOURNAL names, or files from it.

    \b
    catsdogs report journal/
    catsdogs report journal/ --url http://localhost:8000 --html report.html
    catsdogs report journal/ --json - | jq .quality.accuracy
    """
    from ops import rendering, served
    from ops.report import make_report
    from shared.files import write_whole
    from shared.journal import JournalError

    try:
        model = served.from_url(url, key) if url else served.from_file(contract) if contract else None
        made = make_report(paths, model)
        figures = msgspec.json.format(msgspec.json.encode(made)) + b"\n"
        if html_file:
            write_whole(html_file, rendering.page(made).encode())
        if json_file == Path("-"):
            click.echo(figures, nl=False)
            return
        if json_file:
            write_whole(json_file, figures)
    except (JournalError, served.ServedError, OSError) as error:
        raise click.UsageError(str(error)) from error
    click.echo(rendering.text(made))


@click.command()
@click.argument("source", metavar="PHOTOS", type=click.Path(path_type=Path))
@click.option("--url", default="http://localhost:8000", show_default=True, help="URL of the service.")
@click.option("--key", envvar="CATSDOGS_KEY", help="API key, if the service requires one.  [CATSDOGS_KEY]")
@click.option("--limit", type=click.IntRange(1), help="Send only this many photos, cats and dogs in proportion.")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Write the result of each photo to this file, .csv or .jsonl."
)
@click.option(
    "--at-least",
    type=ShareOrTest(0, 1),
    help="Exit with 1 if the share of right answers is below this, e.g. 0.97, or below the model's own test (`test`).",
)
def collect(
    source: Path, url: str, key: str | None, limit: int | None, out: Path | None, at_least: float | str | None
) -> None:
    """Send labelled photos to a running service, and their labels as feedback.

    PHOTOS is a folder or a zip file with photos in folders named Cat or cats and Dog or dogs.

    \b
    catsdogs collect photos.zip --limit 200
    catsdogs collect photos/ --url https://example.org --at-least 0.97 --out collected.csv
    catsdogs collect photos/ --at-least test
    """
    from ops import collect as collecting
    from ops import served

    try:
        model = served.from_url(url, key) if at_least == "test" else None
        with ExitStack() as opened:
            photos = collecting.find_photos(source, opened)
            if limit:
                photos = collecting.sample(photos, limit)
            with click.progressbar(length=len(photos), label="photos", file=sys.stderr) as bar:
                rows = asyncio.run(collecting.collect(photos, url, key, lambda: bar.update(1)))
        if out:
            collecting.write_collected(rows, out)
    except (collecting.CollectError, served.ServedError, OSError) as error:
        raise click.UsageError(str(error)) from error
    found = collecting.outcome(rows)
    for line in collecting.summary_lines(found):
        click.echo(line)
    if isinstance(at_least, float) and (found.accuracy is None or found.of_all.value < at_least):
        click.echo(f"fewer than {at_least:.2%} of the {found.photos:,} photos are right", err=True)
        sys.exit(1)
    if model is not None:
        below = collecting.below_test(found, model)
        click.echo(below or "no worse than the model's own test", err=bool(below))
        sys.exit(bool(below))
