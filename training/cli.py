"""The pipeline's subcommands of ``catsdogs``. Each reads its section of params.yaml and runs one stage.

The stages import torch, so they are imported when they run: ``catsdogs --help`` answers at once.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from training import stage

PARAMS = click.option(
    "--params",
    "params_file",
    type=click.Path(path_type=Path),
    default=Path("params.yaml"),
    show_default=True,
    help="Parameters of all stages.",
)
Command = Callable[..., Any]


def _stage(help_text: str) -> Callable[[Command], click.Command]:
    """Make a subcommand that takes --params and shows a StageError as one line with exit code 2."""

    def decorate(function: Command) -> click.Command:
        def run(*args: Any, **kwargs: Any) -> None:
            try:
                function(*args, **kwargs)
            except stage.StageError as error:
                raise click.UsageError(str(error)) from error

        run.__click_params__ = getattr(function, "__click_params__", [])  # type: ignore[attr-defined]  # click's own way
        return click.command(function.__name__, help=help_text)(PARAMS(run))

    return decorate


@_stage(
    "Bring the photographs to data/raw.\n\nSOURCE is 'kaggle', a folder or a zip file; without it params.yaml says."
)
@click.argument("source", nargs=-1)
def fetch(params_file: Path, source: tuple[str, ...]) -> None:
    """Run the stage fetch."""
    from training import params
    from training.fetch import fetch as run

    counts = run(source or params.load(params_file).fetch.source, stage.RAW)
    click.echo(f"{stage.RAW}: {counts['cats']:,} cats, {counts['dogs']:,} dogs")


@_stage("Look at every file of data/raw; write data/audit.csv: which ones stay out, and why.")
def audit(params_file: Path) -> None:
    """Run the stage audit."""
    from training import params
    from training.audit import audit as run
    from training.audit import summary

    rows = run(stage.RAW, stage.AUDIT, params.load(params_file).audit.near_duplicate)
    found = summary(rows)
    stage.write_json(stage.REPORTS / "audit.json", found)
    for status, count in found.items():
        text = f"{count:,}" if isinstance(count, int) else f"{count['cats']:,} cats, {count['dogs']:,} dogs"
        click.echo(f"{status:>15}: {text}")


@_stage("Put every kept photo on one side by its content; write data/split.csv.")
def split(params_file: Path) -> None:
    """Run the stage split."""
    from training import audit, params
    from training.split import SIDES
    from training.split import split as run

    section = params.load(params_file).split
    photos = run(audit.read(stage.AUDIT), stage.SPLIT, section.train, section.val)
    counts = {
        side: {label: sum((p.side, p.label) == (side, label) for p in photos) for label in ("cats", "dogs")}
        for side in SIDES
    }
    stage.write_json(stage.REPORTS / "split.json", counts)
    for side, count in counts.items():
        click.echo(f"{side:>6}: {count['cats']:,} cats, {count['dogs']:,} dogs")


@_stage("Decode every photo of the split once, to 224×224 PNG below data/processed_split.")
def prepare(params_file: Path) -> None:
    """Run the stage prepare."""
    from training import params
    from training import split as splits
    from training.prepare import prepare as run

    params.load(params_file)  # a broken file is better noticed before minutes of work than after
    run(splits.read(stage.SPLIT), stage.RAW, stage.PREPARED)


@_stage("Train the network; goes on where an interrupted run of the same parameters and data stopped.")
@click.option("--restart", is_flag=True, help="Forget an interrupted run.")
def train(params_file: Path, restart: bool) -> None:
    """Run the stage train."""
    from training import params
    from training import split as splits
    from training.train import train as run

    section = params.load(params_file).train
    digest = splits.split_digest(splits.read(stage.SPLIT))
    run(stage.PREPARED, section, stage.TRAINED, stage.CHECKPOINTS, digest, restart=restart)


@_stage("Fit calibration and thresholds, record the exam, and write models/candidate.onnx.")
def export(params_file: Path) -> None:
    """Run the stage export."""
    from training import params
    from training.export import export as run

    run(params.load(params_file).export)


@_stage("Measure the exported file on the test side; write models/model.onnx and the report.")
def evaluate(params_file: Path) -> None:
    """Run the stage evaluate."""
    from training import params
    from training.evaluate import evaluate as run

    run(params.load(params_file).evaluate)
