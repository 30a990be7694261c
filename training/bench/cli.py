"""Training speed against the loop of tutorials, and what it costs in accuracy and memory.

    python -m training.bench                                     # everything but the ablation; needs `catsdogs prepare`
    python -m training.bench --ablate                            # `make bench-train`: and what each part gains
    python -m training.bench --rounds 3 --batches 6 --no-accuracy --no-memory     # speed only, two minutes

Each trains in its own process, in alternating segments, so that other load on the machine affects both. The networks
trained in these segments are then validated, so speed and accuracy come from the same run: same network, same photos,
one epoch. Writes ``reports/bench-train.json``, and tables next to it.
"""

import datetime
import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import click
import msgspec
import numpy as np

from shared import hardware
from shared.files import write_json, write_whole
from training import labels, params, split, stage
from training.bench.loops import STATUS, Part, Task
from training.comparison import compare
from training.pictures import evenly_spaced
from training.scoreboard import report, table
from training.split import Photo
from training.stage import StageError

# libgomp's default, set explicitly because training/__init__.py asks it to sleep instead:
# https://github.com/gcc-mirror/gcc/blob/releases/gcc-14/libgomp/env.c, "3 msec blocking when … not specificed".
SPINNING: Final = {"GOMP_SPINCOUNT": "300000"}
MEMORY_STEPS: Final = 16  # 3.21 GB after 3 steps and a validation, and 3.27 in a run of four members after its third
MEMORY_PROBE: Final = 1000  # photos the head's probe is fitted to, the same for each size of data set
ABLATION_ROUNDS: Final = 3
ABLATION_BATCHES: Final = 4
INSTEAD: Final[dict[Part, str]] = {
    "channels_last": "channels first in memory",
    "freezing": "nothing frozen",
    "kept_memory": "malloc as it comes, freed memory handed back",
    "decoded_once": "photos decoded in every epoch",
    "linear_colours": "torchvision's ColorJitter",
    "bfloat16": "float32",
    "batches": "augmentation one by one, in the loaders",
}
# What the machine says of itself where it has these.
ONLY_IF: Final[dict[Part, str]] = {"bfloat16": "bfloat16 autocast", "batches": "on the GPU, a batch at once"}
THREADS_SPIN: Final = "threads that spin while they wait"


class LoopProcess:
    """A process that trains on command.

    Args:
        task: what to train.
        environment: variables to set in addition to the inherited ones.
    """

    def __init__(self, task: Task, environment: Mapping[str, str] | None = None) -> None:
        """Start it, and wait until it is ready to learn."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "training.bench.loops", msgspec.json.encode(task).decode()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | dict(environment or {}),
        )
        self.ready = self._answer()

    def ask(self, command: str) -> dict[str, Any]:
        """Send a command, and wait for the answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{command}\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise StageError(f"the measured process exited with code {self._process.wait()}; its error is above")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def __enter__(self) -> "LoopProcess":
        """Use it in a block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop it by closing its input."""
        self._process.communicate()


def rate(segment: dict[str, Any]) -> float:
    """Pictures per second of a segment."""
    return float(segment["pictures"] / segment["seconds"])


def compare_loops(folder: Path, recipe: params.Train, rounds: int, batches: int, *, accuracy: bool) -> dict[str, Any]:
    """Train both in turns on the same photos; returns the parts ``speed``, ``accuracy`` and ``reuse`` of the report."""
    steps = rounds * batches
    segments: dict[str, list[dict[str, Any]]] = {"plain": [], "ours": []}
    with (
        LoopProcess(Task("plain", str(folder), recipe, steps), SPINNING) as plain,
        LoopProcess(Task("ours", str(folder), recipe, steps)) as ours,
    ):
        click.echo("\n".join(ours.ready["choices"]))
        for number in range(1, rounds + 1):
            for name, loop in (("plain", plain), ("ours", ours)):
                segments[name].append(loop.ask(f"learn {batches}"))
            one, other = (rate(segments[name][-1]) for name in segments)
            click.echo(f"round {number} of {rounds}: {one:.2f} and {other:.2f} pictures/s, {other / one:.2f} times")
        found = {"choices": ours.ready["choices"], "speed": _speed(segments)}
        found["speed"]["ours"]["once_seconds"] = ours.ready["once_seconds"]
        if accuracy:
            click.echo("validating both")
            answers = {"plain": plain.ask("validate"), "ours": ours.ask("validate")}
            found["accuracy"] = _accuracy(answers, steps * recipe.batch_size)
            found["reuse"] = {
                "frozen_share_of_forward": ours.ask("frozen_share 9")["share"],
                "validation_ms_per_picture": 1000 * answers["ours"]["seconds"] / len(answers["ours"]["right"]),
            }
    return found


def _speed(segments: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    rates = {name: [rate(segment) for segment in done] for name, done in segments.items()}
    ratios = [ours / plain for plain, ours in zip(rates["plain"], rates["ours"], strict=True)]
    speed: dict[str, Any] = {
        name: {
            "pictures_per_second": statistics.median(each),
            "segments": each,
            "whole_seconds": sum(segment["whole_seconds"] for segment in segments[name]),
        }
        for name, each in rates.items()
    }
    return speed | {
        "ratio": {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios), "pairs": ratios}
    }


def _accuracy(answers: dict[str, dict[str, Any]], pictures: int) -> dict[str, Any]:
    comparison = compare(np.array(answers["plain"]["right"]), np.array(answers["ours"]["right"]))
    return {
        "trained_on": pictures,
        "plain": msgspec.to_builtins(comparison.first),
        "ours": msgspec.to_builtins(comparison.second),
        "comparison": msgspec.to_builtins(comparison),
        "verdict": comparison.describe("the plain loop", "ours"),
        "validation_seconds": {name: answer["seconds"] for name, answer in answers.items()},
    }


def memory_peaks(folder: Path, recipe: params.Train, sides: Iterable[str]) -> list[dict[str, Any]]:
    """Train on data sets of several sizes, each in a process of its own that loads all of it; returns their peaks."""
    recipe = msgspec.structs.replace(recipe, probe_pictures=min(recipe.probe_pictures, MEMORY_PROBE))
    found = []
    for side in sides:
        with LoopProcess(Task("ours", str(folder), recipe, MEMORY_STEPS, side=side)) as ours:
            line = ours.ask(f"read_all {MEMORY_STEPS}")
        click.echo(f"memory with {line['pictures']:,} photos: {line['peak_mb']:.0f} MB at most")
        found.append(line)
    return found


def part_speeds(folder: Path, recipe: params.Train, absent: Sequence[Part]) -> list[dict[str, Any]]:
    """Pictures per second without one part at a time, in turns; the first line has all but the ``absent`` ones."""
    recipe = msgspec.structs.replace(recipe, probe_pictures=0)
    steps = ABLATION_ROUNDS * ABLATION_BATCHES
    kinds: list[tuple[str, Part, dict[str, str]]] = [("as it is", "", {})]
    kinds += [(what, part, {}) for part, what in INSTEAD.items() if part not in absent]
    kinds.append((THREADS_SPIN, "", SPINNING))
    rates: dict[str, list[float]] = {what: [] for what, _, _ in kinds}
    with ExitStack() as stack:
        loops = [
            stack.enter_context(LoopProcess(Task("ours", str(folder), recipe, steps, without=part), variables))
            for _, part, variables in kinds
        ]
        for number in range(1, ABLATION_ROUNDS + 1):
            for (what, _, _), loop in zip(kinds, loops, strict=True):
                rates[what].append(rate(loop.ask(f"learn {ABLATION_BATCHES}")))
            click.echo(f"ablation, round {number} of {ABLATION_ROUNDS} done")
    whole = rates["as it is"]
    return [
        {
            "what": what,
            "pictures_per_second": statistics.median(each),
            "segments": each,
            "against_all": statistics.median([some / all_ for some, all_ in zip(each, whole, strict=True)]),
        }
        for what, each in rates.items()
    ]


def link_sets(folder: Path, photos: list[Photo], train: int, sizes: Iterable[int]) -> None:
    """Lay out the loops' data sets as links: ``train`` photos to learn from, the validation side, and ``sizes``.

    Validation follows the decisions about labels, as ``catsdogs train`` does; training uses the original labels. A
    data set of a given size takes photos from all sides, since only memory is measured with it.

    Raises:
        StageError: there are too few photos.
    """
    decided = labels.decisions()
    sides = {"train": pick_evenly([photo for photo in photos if photo.side == "train"], train)}
    sides["val"] = [photo for photo in photos if photo.side == "val"]
    sides |= {str(size): pick_evenly(photos, size) for size in sizes}
    for side, chosen in sides.items():
        for photo in chosen:
            name = photo.sha256[: labels.ID_LENGTH]
            label = labels.audited(name, photo.label, decided if side == "val" else {})
            if label is None:
                continue
            prepared = stage.PREPARED / photo.side / photo.label / f"{name}.webp"
            raw = stage.RAW / photo.path
            for source, link in (
                (prepared, folder / "prepared" / side / label / prepared.name),
                (raw, folder / "photos" / side / label / f"{name}{raw.suffix}"),
            ):
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(source.resolve())


def pick_evenly(photos: list[Photo], count: int) -> list[Photo]:
    """``count`` of the photos, spread evenly over them.

    Raises:
        StageError: there are fewer.
    """
    if len(photos) < count:
        raise StageError(
            f"{count:,} photos are needed and there are {len(photos):,}: lower --rounds, --batches or --sizes"
        )
    return [photos[index] for index in evenly_spaced(len(photos), count)]


@click.command(
    help="Measure training's speed, accuracy and memory against the loop of tutorials.\n\n"
    "\b\nExamples:\n"
    "  python -m training.bench --ablate\n"
    "  python -m training.bench --rounds 3 --batches 6 --no-accuracy --no-memory"
)
@click.option("--rounds", default=6, show_default=True, type=click.IntRange(1), help="Segments that each loop trains.")
@click.option(
    "--batches",
    default=6,
    show_default=True,
    type=click.IntRange(2),
    help="Batches in a segment; the first is not timed.",
)
@click.option("--accuracy/--no-accuracy", default=True, show_default=True, help="Validate both networks.")
@click.option(
    "--memory/--no-memory", "with_memory", default=True, show_default=True, help="Measure memory at two data set sizes."
)
@click.option(
    "--sizes",
    nargs=2,
    default=(1000, 12000),
    show_default=True,
    type=click.IntRange(2),
    help="Photos in the two data sets.",
)
@click.option("--ablate", is_flag=True, help="Also leave out one part at a time; takes about 1 GB of memory for each.")
@click.option("--params", "params_file", default="params.yaml", show_default=True, type=click.Path(path_type=Path))
@click.option("--out", default=stage.REPORTS / "bench-train.json", show_default=True, type=click.Path(path_type=Path))
def main(  # noqa: PLR0913, PLR0917  # options are arguments
    rounds: int,
    batches: int,
    accuracy: bool,
    with_memory: bool,
    sizes: tuple[int, int],
    ablate: bool,
    params_file: Path,
    out: Path,
) -> None:
    """Measure, and write JSON and tables."""
    try:
        recipe = msgspec.structs.replace(params.load(params_file).train, epochs=1)
        with tempfile.TemporaryDirectory(prefix="bench-", dir=stage.PREPARED.parent) as name:
            folder = Path(name).resolve()
            chosen = sizes if with_memory and STATUS.exists() else ()
            link_sets(folder, split.read(stage.SPLIT), rounds * batches * recipe.batch_size, chosen)
            document: dict[str, Any] = {
                "written": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                "machine": hardware.describe()
                | {package: importlib.metadata.version(package) for package in ("torch", "torchvision")},
                "settings": {
                    "model": recipe.model,
                    "batch_size": recipe.batch_size,
                    "rounds": rounds,
                    "batches": batches,
                },
            }
            if chosen:
                document["memory"] = memory_peaks(folder, recipe, map(str, chosen))
            document |= compare_loops(folder, recipe, rounds, batches, accuracy=accuracy)
            if ablate:
                said = " ".join(document["choices"])
                absent = [needs for needs, words in ONLY_IF.items() if words not in said]
                if "batches" not in absent:  # torchvision's ColorJitter takes one picture
                    absent.append("linear_colours")
                document["ablation"] = part_speeds(folder, recipe, absent)
    except StageError as error:
        raise click.UsageError(str(error)) from error
    write_json(out, document)
    write_whole(out.with_suffix(".md"), report(document))
    click.echo(table(document))
