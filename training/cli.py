"""The pipeline's subcommands of ``catsdogs``: each reads its section of params.yaml and runs its stage.

The stages import torch, so each is imported only when it runs: ``catsdogs --help`` answers at once.
"""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import click

from shared.files import write_json
from training import stage
from training.decisions import LEDGER

PARAMS = click.option(
    "--params",
    "params_file",
    type=click.Path(path_type=Path),
    default=Path("params.yaml"),
    show_default=True,
    help="Parameters of all stages.",
)
FILE: Final = click.Path(path_type=Path, dir_okay=False)
EXISTING: Final = click.Path(path_type=Path, dir_okay=False, exists=True)
Command = Callable[..., Any]


class Refused(click.ClickException):
    """One line that says what to fix. click's UsageError would add the usage, but the command was called correctly."""

    exit_code = 2


def _command(help_text: str) -> Callable[[Command], click.Command]:
    """Make a subcommand that shows a StageError, or a full disk, as one line with exit code 2."""

    def decorate(function: Command) -> click.Command:
        def run(*args: Any, **kwargs: Any) -> None:
            try:
                with stage.explained():
                    function(*args, **kwargs)
            except stage.StageError as error:
                raise Refused(str(error)) from error

        run.__click_params__ = getattr(function, "__click_params__", [])  # type: ignore[attr-defined]  # click's own way
        return click.command(function.__name__, help=help_text)(run)

    return decorate


def _stage(help_text: str) -> Callable[[Command], click.Command]:
    """Make the subcommand of a stage: as :func:`_command`, and it takes --params."""
    return lambda function: _command(help_text)(PARAMS(function))


@_stage(
    "Make photos to learn from of the samples that a service kept and a person labelled, in data/gathered.\n\n"
    "SAMPLES is the folder or bucket of CATSDOGS_SAMPLES, LABELS the ledger of `catsdogs label`; default: labels.csv. "
    "Given, they become those of params.yaml; run it again after labelling or forgetting more, then `dvc repro`."
)
@click.argument("samples", required=False)
@click.argument("labels", required=False)
def gather(params_file: Path, samples: str | None, labels: str | None) -> None:
    """Run the stage gather."""
    from training import params
    from training.gather import REASONS
    from training.gather import gather as run

    section = params.load(params_file).gather
    if samples:
        section = params.Gather(samples, labels or str(LEDGER))
    gathered = run(section, stage.GATHERED, stage.GATHERED_TABLE, checked=not samples)
    if samples:
        params.assign_gather(params_file, section, gathered.digest)
    report = gathered.report()
    write_json(stage.REPORTS / "gather.json", report)
    if section.samples is None:
        click.echo("gather.samples: none, so nothing is gathered")
        return
    for side, count in report["gathered"].items():
        click.echo(f"{side:>10}: {count['cats']:,} cats, {count['dogs']:,} dogs")
    for reason, left_out in gathered.left_out.items():
        click.echo(f"left out {left_out:,}: {REASONS[reason]}")


@_stage(
    "Copy the photos to data/raw.\n\nSOURCE is a folder, a zip or tar file, a CSV or Parquet table of paths "
    "and labels, or a collection to download: 'kaggle' or 'oxford-iiit-pet'; by default params.yaml names them."
)
@click.argument("source", nargs=-1)
@click.option("--classes", help='Names of folders and labels, as "cats=cat,kitten,0 dogs=dog,puppy,1".')
@click.option("--keep-sides", is_flag=True, help="Keep train, validation and test folders apart in the split.")
def fetch(params_file: Path, source: tuple[str, ...], classes: str | None, keep_sides: bool) -> None:
    """Run the stage fetch."""
    from training import params
    from training.fetch import fetch as run

    section = params.load(params_file).fetch
    if classes:
        section = params.with_classes(section, classes)
    keep_sides = keep_sides or section.keep_sides
    fetched = run(source or section.source, stage.RAW, section.labels(), keep_sides=keep_sides, gathered=stage.GATHERED)
    report = fetched.report()
    write_json(stage.REPORTS / "fetch.json", report)
    for name, one in report["collections"].items():
        click.echo(f"{name}: {one['cats']:,} cats, {one['dogs']:,} dogs; licence: {one['licence']}")
    for line in fetched.lines():
        click.echo(line)
    if keep_sides or len(fetched.sides) > 1:
        said = ", ".join(f"{count:,} for {side}" for side, count in fetched.sides.items())
        what = "are kept apart" if keep_sides else "are put together and split anew (fetch.keep_sides keeps them apart)"
        click.echo(f"the folders' own sides, {said}, {what}")
    click.echo(f"{stage.RAW}: {fetched.photos['cats']:,} cats, {fetched.photos['dogs']:,} dogs")
    if warning := stage.imbalance(fetched.photos["cats"], fetched.photos["dogs"]):
        click.echo(warning)


@_stage("Check every file in data/raw; write data/audit.csv: which ones are left out, and why.")
def audit(params_file: Path) -> None:
    """Run the stage audit."""
    from training import params
    from training.audit import audit as run
    from training.audit import summary

    rows = run(stage.RAW, stage.AUDIT, params.load(params_file).audit.near_duplicate)
    found = summary(rows)
    write_json(stage.REPORTS / "audit.json", found)
    for status, count in found.items():
        text = f"{count:,}" if isinstance(count, int) else f"{count['cats']:,} cats, {count['dogs']:,} dogs"
        click.echo(f"{status:>15}: {text}")


@_stage("Assign every kept photo to train, val or test by its content; write data/split.csv.")
def split(params_file: Path) -> None:
    """Run the stage split."""
    from shared.contract import CLASSES
    from training import audit, params
    from training.split import FROM_PRODUCTION, SIDES, given_sides, summary
    from training.split import split as run

    section = params.load(params_file).split
    photos = run(audit.read(stage.AUDIT), stage.SPLIT, section.train, section.val, given_sides(stage.NAMES))
    found = summary(photos)
    write_json(stage.REPORTS / "split.json", found)
    for side in (*SIDES, *FROM_PRODUCTION):
        if side in found:
            click.echo(f"{side:>10}: {found[side]['cats']:,} cats, {found[side]['dogs']:,} dogs")
    if warning := stage.imbalance(*(sum(found[side][label] for side in SIDES) for label in CLASSES)):
        click.echo(warning)


@_stage("Decode every photo of the split once, to a square below data/processed_split.")
def prepare(params_file: Path) -> None:
    """Run the stage prepare."""
    from training import params
    from training import split as splits
    from training.prepare import prepare as run

    params.load(params_file)  # report a broken file before minutes of work, not after
    run(splits.read(stage.SPLIT), stage.RAW, stage.PREPARED)


@_stage("List the photos whose label looks wrong; write data/suspects.csv and reports/suspects.png.")
def suspects(params_file: Path) -> None:
    """Run the stage suspects."""
    from training import params
    from training.suspects import suspects as run

    run(stage.PREPARED, params.load(params_file).suspects, stage.SUSPECTS, stage.REPORTS)


@_stage("Train the network; resumes an interrupted run with the same parameters, data, labels and code.")
@click.option("--closer", is_flag=True, help="Train the network of the second look, into models/closer.")
@click.option("--restart", is_flag=True, help="Start over instead of resuming an interrupted run.")
@click.option("--processes", type=click.IntRange(1), default=1, help="Processes on this machine: one for each GPU.")
def train(params_file: Path, closer: bool, restart: bool, processes: int) -> None:
    """Run the stage train."""
    from training import group
    from training.train import run

    if processes == 1:
        run(params_file, closer=closer, restart=restart)
    else:
        flags = ["--closer"] * closer + ["--restart"] * restart
        group.launch(processes, "training.train", "--params", str(params_file), *flags)


@_stage(
    "Search the ranges that params.yaml has under `tune`, and show the best values.\n\n"
    "Each trial is a training run of its own, and a nested run in MLflow. One that is worse than half of the others is "
    "stopped after an epoch. A search that was interrupted goes on; with a larger number it goes further."
)
@click.option("--trials", type=click.IntRange(1), default=20, show_default=True, help="Trials in all.")
@click.option(
    "--ray", metavar="ADDRESS", help="Run a trial on each GPU, or each machine, of a Ray cluster at host:6379."
)
def tune(params_file: Path, trials: int, ray: str | None) -> None:
    """Run the search."""
    from training.tune import tune as run

    if ray is not None and find_spec("ray") is None:
        raise click.UsageError("--ray needs Ray, which comes with the extra `cluster`")
    run(params_file, trials, ray)


@_stage("Fit calibration and thresholds, record the exam, and write models/candidate.onnx.")
def export(params_file: Path) -> None:
    """Run the stage export."""
    from training import params
    from training.export import export as run

    run(params.load(params_file).export)


@_stage("Quantize the network to int8; write models/candidate.int8.onnx.")
def quantize(params_file: Path) -> None:
    """Run the stage quantize."""
    from training import params
    from training.quantize import quantize as run

    document = params.load(params_file)
    run(document.quantize, document.export)


@_stage("Measure the exported files on the test side; write models/model*.onnx and the report.")
def evaluate(params_file: Path) -> None:
    """Run the stage evaluate."""
    from training import params
    from training.evaluate import evaluate as run

    document = params.load(params_file)
    run(document.evaluate, document.export.others)


@_stage(
    "Put the pipeline's model into serving/models if it beats the one there.\n\n"
    "It is registered in MLflow as a version of cats-dogs, with the comparison as its tags. It wins if it is "
    "significantly better on the same test photos, or smaller or faster, and not worse in anything than any version "
    "that has served; docs/pipeline.md has the rule.\n\n\b\n"
    "  catsdogs promote --dry-run    show the comparison and the decision\n"
    "  catsdogs promote              act on it\n"
    "  catsdogs promote --again      also if the model was rolled back\n"
    "  catsdogs promote --shadow journal    not if it is worse in shadow, by the feedback in that journal"
)
@click.option("--dry-run", is_flag=True, help="Show what would happen without changing anything.")
@click.option("--again", is_flag=True, help="Let a model that was rolled back try once more.")
@click.option(
    "--shadow",
    type=click.Path(exists=True, path_type=Path),
    metavar="JOURNAL",
    help="The journal of a service whose CATSDOGS_CHALLENGER is the candidate: its answers may keep it out.",
)
def promote(params_file: Path, dry_run: bool, again: bool, shadow: Path | None) -> None:
    """Run the comparison with the champion."""
    from training import params
    from training.promotion.promote import promote as run

    run(params.load(params_file).export.others, dry_run=dry_run, again=again, shadowed=shadow)


@_command(
    "Say what samples show, by keyboard, on a page of this machine.\n\n"
    "SAMPLES is the folder or bucket of the service's CATSDOGS_SAMPLES. Those that tell most come first. Each decision "
    "becomes a line of the ledger. What clients reported is shown on demand, and is never a label.\n\n\b\n"
    "  catsdogs label samples --as Anna\n"
    "  catsdogs label samples --as Anna --settle         decide where people disagree\n"
    "  catsdogs label samples --as Anna --import FILE    add the labels of a .csv or Label Studio's .json\n"
    "  catsdogs label samples --export FILE              write the labels as such a file"
)
@click.argument("samples")
@click.option("--as", "who", metavar="NAME", help="Who labels; asked for if not given.")
@click.option("--ledger", type=FILE, default=LEDGER, show_default=True, help="The file of decisions.")
@click.option("--settle", is_flag=True, help="Show what people disagree about; a decision settles it.")
@click.option("--model", type=EXISTING, help="Whose evidence to show.  [the one that ships]")
@click.option("--port", type=click.IntRange(0, 65535), default=8001, show_default=True, help="0 for any free port.")
@click.option("--import", "source", type=EXISTING, help="Add the labels of this file, and end.")
@click.option("--export", "target", type=FILE, help="Write the labels to this file, and end.")
def label(samples: str, ledger: Path, who: str | None, source: Path | None, target: Path | None, **page: Any) -> None:
    """Serve the page, or exchange labels."""
    from training.labelling import label as run

    if source and target:
        raise click.UsageError("either --import or --export")
    if target:
        run.give(samples, ledger, target)
        return
    who = click.prompt("Your name") if who is None else who
    assert who is not None
    if source:
        run.take(samples, ledger, who, source)
    else:
        run.page(samples, ledger, who, **page)


@_command(
    "Make the previous champion the champion again, and restore its files in serving/models.\n\n"
    "The version that served is not promoted again unless told to.\n\n\b\n"
    "  catsdogs rollback"
)
def rollback() -> None:
    """Undo the last promotion."""
    from training.promotion.restore import rollback as run

    run()


@_command(
    "Put a version of the registry into serving/models and make it champion, whatever was decided about it.\n\n"
    "Its files must be those that were registered, and pass their exam.\n\n\b\n"
    "  catsdogs restore --list    versions with decision, figures and date\n"
    "  catsdogs restore 3         the files of cats-dogs/3 serve"
)
@click.argument("version", type=click.IntRange(1), required=False)
@click.option("--list", "listed", is_flag=True, help="Show all versions.")
def restore(version: int | None, listed: bool) -> None:
    """Let a version serve, or list them."""
    from training.promotion.restore import restore as run
    from training.promotion.restore import table

    if listed:
        click.echo(table())
    elif version is None:
        raise click.UsageError("give a version's number, or --list")
    else:
        run(str(version))
