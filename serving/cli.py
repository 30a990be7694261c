"""The console script ``catsdogs``, and the service's subcommands.

Subcommands are entry points, so that `serving` imports no other room: group ``catsdogs.commands`` works in every
installation, ``catsdogs.commands.NAME`` needs the extra NAME.
"""

import asyncio
import os
import resource
import signal
import sys
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import msgspec

from serving import __version__, extras

if TYPE_CHECKING:
    from serving.messages import Prediction

# Entry points, the extra that they need, and what they are for.
GROUPS: Final = {
    "catsdogs.commands": ("", "Service"),
    "catsdogs.commands.train": ("train", "Training"),
    "catsdogs.commands.tune": ("tune", "Search"),
    "catsdogs.commands.score": ("score", "Many pictures"),
    "catsdogs.commands.ops": ("ops", "Operation"),
}


class Commands(click.Group):
    """A group of commands from entry points, each loaded only when it is called."""

    def list_commands(self, _: click.Context) -> list[str]:
        """List the commands, those of a group in order of use."""
        return [entry.name for group in GROUPS for entry in _entries(group)]

    def format_commands(self, _: click.Context, formatter: click.HelpFormatter) -> None:
        """Describe the commands of each group that is installed, and name the extras of the others."""
        absent = []
        for group, (extra, title) in GROUPS.items():
            if not (entries := _entries(group)):
                continue
            if extra and not extras.installed(extra):
                names = [entry.name for entry in entries]
                absent.append((", ".join(names[:3]) + ", …" * (len(names) > 3), extras.hint(extra)))
                continue
            with formatter.section(title):
                commands = [(entry.name, _load(entry, extra)) for entry in entries]
                formatter.write_dl([(name, command.get_short_help_str(70)) for name, command in commands])
        if absent:
            with formatter.section("Not installed"):
                formatter.write_dl(absent)

    def get_command(self, _: click.Context, name: str) -> click.Command | None:
        """Load a command, or a stand-in that says what to install."""
        found = _find(name)
        return _load(*found) if found else None

    def invoke(self, context: click.Context) -> Any:
        """Run a command; if a package is missing, say which, and how to install it."""
        try:
            return super().invoke(context)
        except ModuleNotFoundError as error:
            found = _find(context.invoked_subcommand or "")
            if found is None or extras.ours(error):
                raise
            entry, extra = found
            raise click.UsageError(extras.explain(entry.name, extra, error)) from error


def _find(name: str) -> tuple[EntryPoint, str] | None:
    """The command of this name, and its extra."""
    found = ((entry, extra) for group, (extra, _) in GROUPS.items() for entry in _entries(group) if entry.name == name)
    return next(found, None)


def _entries(group: str) -> list[EntryPoint]:
    pipeline = ["fetch", "audit", "split", "prepare", "suspects", "train", "export", "quantize", "evaluate", "gather"]
    service = ["serve", "predict", "forget", "score", "sort", "collect", "report"]
    order = [*pipeline, "promote", "rollback", "restore", *service]
    # Two installations of the package on one path (an editable one in a checkout) list each command twice.
    unique = {entry.name: entry for entry in entry_points(group=group)}
    return sorted(unique.values(), key=lambda entry: order.index(entry.name) if entry.name in order else len(order))


def _load(entry: EntryPoint, extra: str) -> click.Command:
    try:
        command: click.Command = entry.load()
    except ModuleNotFoundError as error:
        if extras.ours(error):
            raise
        message = extras.explain(entry.name, extra, error)

        def explain(**_: object) -> None:
            raise click.UsageError(message)

        return click.Command(
            entry.name,
            callback=explain,
            help=message,
            context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
        )
    return command


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__)
def main() -> None:
    """Tell cats from dogs: train a model, serve it, use it.

    \b
    catsdogs serve                         serve the API and a web page on http://127.0.0.1:8000
    catsdogs predict photo.jpg             classify without a server
    catsdogs fetch photos.zip              run the first stage of the pipeline; `dvc repro` runs all
    """


@click.command()
@click.option("--host", help="Address to listen on.  [CATSDOGS_HOST, or 127.0.0.1]")
@click.option("--port", type=int, help="Port to listen on; 0 for any free one.  [CATSDOGS_PORT, or 8000]")
@click.option("--model", help="Model file.  [CATSDOGS_MODEL, or the one that ships]")
def serve(host: str | None, port: int | None, model: str | None) -> None:
    """Serve predictions over HTTP, with a web page on /.

    \b
    catsdogs serve
    catsdogs serve --host 0.0.0.0 --port 80
    CATSDOGS_MAX_QUEUE=32 catsdogs serve --model models/model.onnx
    """
    # The first process of a container has no default action for SIGTERM; until the server handles it, it would be lost.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    from serving.settings import SettingsError, from_environment

    try:
        settings = from_environment(host=host, port=port, model=model)
    except SettingsError as error:
        raise click.UsageError(str(error)) from error
    if not settings.model_path.is_file():
        raise click.UsageError(f"{settings.model_path}: no such model file")

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # clients' pictures are in its memory, and belong on no disk
    from serving.engine.lane import Zygote

    # It imports what lanes need while this process imports what HTTP needs.
    zygote = Zygote()
    zygote.start()
    from serving.http.server import run

    sys.exit(run(settings, zygote))


@click.command()
def key() -> None:
    """Make an API key.

    The service is given only its digest; clients send the key. Neither is stored.

    \b
    catsdogs key
    CATSDOGS_API_KEYS=DIGEST catsdogs serve
    curl -H "Authorization: Bearer KEY" -F file=@photo.jpg localhost:8000/predict
    """
    from serving.http import auth

    made, digest = auth.make()
    click.echo(f"key     {made}\ndigest  {digest}\n")
    click.echo("Give the digest to the service (several are separated by commas):")
    click.echo(f"  CATSDOGS_API_KEYS={digest} catsdogs serve\n")
    click.echo("and the key to a client; in a browser it is the password, with any user name:")
    click.echo(f'  curl -H "Authorization: Bearer {made}" -F file=@photo.jpg localhost:8000/predict')


@click.command()
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@click.option("--samples", help="Folder or bucket of samples.  [CATSDOGS_SAMPLES]")
def forget(ids: tuple[str, ...], samples: str | None) -> None:
    """Delete the samples of predictions for good, by the predictions' ids.

    A tombstone stays, so that a picture that is on its way is not kept, and no later data set takes one that was
    copied. It does not reach what is older: data sets and DVC's cache that already have the picture, and the weights of
    models that were trained with it. Remove it there yourself, and train again.

    \b
    catsdogs forget --samples samples 6a1b…
    """
    from serving.ids import FORM
    from serving.settings import SettingsError, from_environment
    from serving.telemetry.samples import forget
    from shared.stores import SCHEMES

    try:
        settings = from_environment(samples=samples)
    except SettingsError as error:
        raise click.UsageError(str(error)) from error
    if not settings.samples:
        raise click.UsageError("name the samples: --samples, or CATSDOGS_SAMPLES")
    if not settings.samples.startswith(SCHEMES) and not Path(settings.samples).expanduser().is_dir():
        raise click.UsageError(f"{settings.samples}: no such folder")
    if wrong := [id_ for id_ in ids if not FORM.fullmatch(id_)]:
        raise click.UsageError(f"not the id of a prediction: {', '.join(wrong)}")
    try:
        for id_ in ids:
            there = forget(settings.samples, id_)
            click.echo(f"{id_}  {'deleted' if there else 'there was no sample'}; a tombstone keeps it out from now on")
    except OSError as error:
        raise click.ClickException(f"{settings.samples}: {error.strerror or error}") from error
    click.echo("Not reached: data sets and DVC's cache that have the picture already, and models trained with it.")


@click.command()
@click.argument("files", nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per file, each on a line.")
@click.option("--model", help="Model file.  [CATSDOGS_MODEL, or the one that ships]")
def predict(files: tuple[str, ...], as_json: bool, model: str | None) -> None:
    """Classify FILES without a server.

    FILES are pictures, folders, patterns such as 'photos/**/*.jpg', or - for a picture on stdin. One that cannot be
    classified is reported on stderr; the others are, and the exit code is 1.

    \b
    catsdogs predict cat.jpg dog.jpg
    catsdogs predict --json photos | jq .verdict
    curl -s https://example.org/cat.jpg | catsdogs predict -
    """
    from serving import local
    from serving.settings import Settings

    # The other settings are the service's: a mistake in them is none here.
    settings = Settings(model=os.environ.get("CATSDOGS_MODEL", "") if model is None else model)

    async def classify(found: list[str]) -> bool:
        failed = False
        async with local.lanes(settings) as lanes:
            assert lanes.model is not None
            if reason := lanes.model.fallback:
                click.echo(f"{lanes.model.file} answers in place of {settings.model_path.name}: {reason}", err=True)
            if not as_json:
                click.echo(f"{'verdict':<8} {'cats':>7} {'dogs':>7} {'familiar':>8}  file")
            async for file, answer in local.predict(lanes, found):
                if isinstance(answer, str):
                    failed = True
                    click.echo(f"{file}: {answer}", err=True)
                else:
                    click.echo(msgspec.json.encode(answer) if as_json else _line(answer))
        return failed

    try:
        if not (found := [name for given in files for name in local.files(given)]):
            raise click.UsageError("there are no files in these folders")
        failed = asyncio.run(classify(found))
    except local.ModelError as error:
        raise click.UsageError(str(error)) from error
    except OSError as error:  # a name too long, or nowhere to print to
        raise click.ClickException(str(error)) from error
    if failed:
        sys.exit(1)


def _line(found: "Prediction") -> str:
    because = f"  ({found.unsure_because.replace('_', ' ')})" if found.unsure_because else ""
    return (
        f"{found.verdict:<8} {found.probabilities.cats:>7.2%} {found.probabilities.dogs:>7.2%} "
        f"{found.familiarity:>8.2f}  {found.client_id}{because}"
    )
