"""The console script ``catsdogs``, and the service's own subcommands.

Subcommands are entry points, so that this room need not import another: group ``catsdogs.commands`` works in every
installation, ``catsdogs.commands.NAME`` needs the extra NAME.
"""

import sys
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Final

import click
import msgspec

GROUPS: Final = {"catsdogs.commands": None, "catsdogs.commands.train": "train"}
ROOMS: Final = ("shared", "training", "serving", "ops")


class Commands(click.Group):
    """A group whose commands come from entry points, each loaded when it is called."""

    def list_commands(self, _: click.Context) -> list[str]:
        """Name them in the order in which they are used: the pipeline's, then the service's."""
        return [entry.name for group in reversed(GROUPS) for entry in _entries(group)]

    def get_command(self, _: click.Context, name: str) -> click.Command | None:
        """Load one, or a stand-in that says what to install."""
        for group, extra in GROUPS.items():
            for entry in _entries(group):
                if entry.name == name:
                    return _load(entry, extra)
        return None

    def invoke(self, context: click.Context) -> Any:
        """Run a command; a package that its extra would bring, and is missing, is said plainly."""
        try:
            return super().invoke(context)
        except ModuleNotFoundError as error:
            name = context.invoked_subcommand or ""
            extra = next((extra for group, extra in GROUPS.items() if name in [e.name for e in _entries(group)]), None)
            if extra is None or (error.name or "").split(".")[0] in ROOMS:
                raise
            raise click.UsageError(
                f"`catsdogs {name}` needs {error.name}, which comes with: pip install 'cats-dogs[{extra}]'"
            ) from error


def _entries(group: str) -> list[EntryPoint]:
    pipeline = ["fetch", "audit", "split", "prepare", "suspects", "train", "export", "quantize", "evaluate"]
    order = [*pipeline, "promote", "rollback", "serve", "predict"]
    # Two installations of the package on one path (an editable one in a checkout) list each command twice.
    unique = {entry.name: entry for entry in entry_points(group=group)}
    return sorted(unique.values(), key=lambda entry: order.index(entry.name) if entry.name in order else len(order))


def _load(entry: EntryPoint, extra: str | None) -> click.Command:
    try:
        command: click.Command = entry.load()
    except ModuleNotFoundError as error:
        if extra is None or (error.name or "").split(".")[0] in ROOMS:
            raise
        message = f"`catsdogs {entry.name}` comes with: pip install 'cats-dogs[{extra}]'"

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
@click.version_option(package_name="cats-dogs")
def main() -> None:
    """Tell cats from dogs: train a model, serve it, ask it.

    \b
    catsdogs serve                         answer on http://127.0.0.1:8000
    catsdogs predict photo.jpg             answer here and now
    catsdogs fetch photos.zip              the first stage of the pipeline; `dvc repro` runs them all
    """


@click.command()
@click.option("--host", help="Address to listen on.  [CATSDOGS_HOST, or 127.0.0.1]")
@click.option("--port", type=int, help="Port to listen on; 0 for any free one.  [CATSDOGS_PORT, or 8000]")
@click.option("--model", help="Model file.  [CATSDOGS_MODEL, or the one that ships]")
def serve(host: str | None, port: int | None, model: str | None) -> None:
    """Answer over HTTP, with a web page on /.

    \b
    catsdogs serve
    catsdogs serve --host 0.0.0.0 --port 80
    CATSDOGS_MAX_QUEUE=32 catsdogs serve --model models/model.onnx
    """
    from serving.server import run
    from serving.settings import SettingsError, from_environment

    try:
        settings = from_environment(host=host, port=port, model=model)
    except SettingsError as error:
        raise click.UsageError(str(error)) from error
    if not settings.model_path.is_file():
        raise click.UsageError(f"{settings.model_path}: no such model file")
    sys.exit(run(settings))


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="One JSON object per file and line, for programs.")
@click.option("--model", help="Model file.  [CATSDOGS_MODEL, or the one that ships]")
def predict(files: tuple[Path, ...], as_json: bool, model: str | None) -> None:
    """Answer for each of FILES, without a server.

    A file that cannot be answered is named on stderr, the others are answered, and the exit code is 1.

    \b
    catsdogs predict cat.jpg dog.jpg
    catsdogs predict --json *.jpg | jq .verdict
    """
    from serving import model as models
    from serving.classify import classify
    from serving.settings import from_environment
    from shared.pixels import Limits, RefusedImageError

    settings = from_environment(model=model)
    try:
        loaded = models.load(settings.model_path)
    except models.ModelRefusedError as error:
        raise click.UsageError(str(error)) from error
    if loaded.fallback:
        click.echo(f"{loaded.path.name} answers in place of {settings.model_path.name}: {loaded.fallback}", err=True)
    if not as_json:
        click.echo(f"{'verdict':<8} {'cats':>7} {'dogs':>7} {'familiar':>8}  file")
    failed = False
    for file in files:
        try:
            answer = classify(loaded, file.read_bytes(), Limits(max_pixels=settings.max_pixels))
        except (OSError, RefusedImageError) as error:
            failed = True
            reason = error.strerror if isinstance(error, OSError) else str(error)
            click.echo(f"{file}: {reason}", err=True)
            continue
        message = answer.message(str(file), explain=False)
        if as_json:
            click.echo(msgspec.json.encode(message))
        else:
            because = f"  ({message.unsure_because.replace('_', ' ')})" if message.unsure_because else ""
            click.echo(
                f"{message.verdict:<8} {message.probabilities.cats:>7.2%} {message.probabilities.dogs:>7.2%} "
                f"{message.familiarity:>8.2f}  {file}{because}"
            )
    if failed:
        sys.exit(1)
