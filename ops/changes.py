"""What a commit changes in the model, as Markdown for a pull request: metrics, parameters, learning curves, plots.

    python -m ops.changes origin/main > changes.md
    python -m ops.changes origin/main --url https://github.com/owner/repo      # with pictures before and after

Compares the working tree with the given commit; needs git and the extra ``train`` (for DVC), but no photographs.
"""

import csv
import io
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import click
import msgspec

# A pull request's comment may have 65,536 characters.
LONGEST: Final = 60_000
LONGEST_VALUE: Final = 200
# What decides about a model comes first; everything else that changed is folded away.
HEADLINES: Final = {
    "accuracy": "right",
    "audited.accuracy": "right, wrong labels corrected",
    "log_loss": "log loss",
    "audited.log_loss": "log loss, wrong labels corrected",
    "audited.calibration_error": "calibration error",
    "audited.answered": "answered, rather than unsure",
    "audited.accuracy_when_answered": "right where answered",
    "from_production.production.accuracy": "right in production",
    "from_production.hard.accuracy": "right on what was hard in production",
    "strangers.strangers_unsure": "other things called unsure",
    "milliseconds": "milliseconds a photo, one thread",
    "megabytes": "megabytes",
}
MODELS: Final = {"reports/metrics.int8.json": "int8", "reports/metrics.json": "fp32"}
HISTORY: Final = Path("models/trained/history.csv")
PICTURES: Final = (Path("reports/confusion.png"),)
# This Python's own DVC, whether or not its environment is activated.
DVC: Final = (sys.executable, "-P", "-m", "dvc")

Diff = dict[str, dict[str, dict[str, Any]]]


class Row(msgspec.Struct, frozen=True):
    """A metric or parameter, before and after as they are shown."""

    name: str
    before: str
    after: str
    change: str = ""


def number(value: object) -> str:
    """A value as a table shows it, safe in Markdown whatever it holds."""
    if value is None:
        return "–"
    said = f"{value:.4g}" if isinstance(value, float) else " ".join(str(value).split())
    said = said if len(said) <= LONGEST_VALUE else f"{said[:LONGEST_VALUE]}…"
    # A code span keeps what a pull request's author wrote from being a link, a mention or HTML.
    return said if isinstance(value, int | float) else f"`{said.replace('`', chr(39)).replace('|', chr(92) + '|')}`"


def rows(changed: dict[str, dict[str, Any]]) -> list[Row]:
    """One row for each metric that changed; a value and the ends of its interval are one metric."""
    found = []
    for name in sorted({key.removesuffix(".value").removesuffix(".low").removesuffix(".high") for key in changed}):
        value, low, high = (changed.get(f"{name}.{part}") for part in ("value", "low", "high"))
        plain = changed.get(name, value)
        if plain is None:
            continue
        before, after = plain.get("old"), plain.get("new")
        if before == after and not _moved(low) and not _moved(high):
            continue
        found.append(
            Row(
                name,
                number(before) + _interval(low, high, "old"),
                number(after) + _interval(low, high, "new"),
                _change(before, after, low, high),
            )
        )
    return found


def _moved(end: dict[str, Any] | None) -> bool:
    return end is not None and end.get("old") != end.get("new")


def _interval(low: dict[str, Any] | None, high: dict[str, Any] | None, side: str) -> str:
    if not low or not high or low.get(side) is None or high.get(side) is None:
        return ""
    return f" ({number(low[side])} to {number(high[side])})"


def _change(before: object, after: object, low: dict[str, Any] | None, high: dict[str, Any] | None) -> str:
    if isinstance(before, bool) or isinstance(after, bool):
        return ""
    if not isinstance(before, int | float) or not isinstance(after, int | float):
        return ""
    change = f"{after - before:+.2g}"
    ends = (low or {}).get("old"), (high or {}).get("old")
    if ends[0] is not None and ends[1] is not None:
        return f"{change}, {'inside' if ends[0] <= after <= ends[1] else '**outside**'} the old interval"
    return change


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *lines))


def curves(before: str, after: str) -> str:
    """Validation loss of the first network by epoch, as a chart for GitHub; before is empty if there was none."""
    lines = [[float(row["val_loss"]) for row in csv.DictReader(io.StringIO(text))] for text in (before, after) if text]
    chart = [
        "```mermaid",
        "xychart-beta",
        '    title "Validation loss"',
        f'    x-axis "epoch" 1 --> {max(2, *map(len, lines))}',
        '    y-axis "nats"',
        *(f"    line [{', '.join(f'{value:.5f}' for value in line)}]" for line in lines),
        "```",
    ]
    return "\n".join(chart) + ("\n\nThe first line is before, the second after." if len(lines) == 2 else "")


def markdown(metrics: Diff, params: Diff, learned: str = "", pictures: str = "", *, base: str) -> str:
    """The whole comment."""
    said = [f"## What this changes in the model\n\nCompared with `{base}`."]
    changed = {path: found for path, values in metrics.items() if (found := rows(values))}
    for path in MODELS:
        by_name = {row.name: row for row in changed.get(path, [])}
        head = [by_name[name] for name in HEADLINES if name in by_name]
        if head:
            lines = [[HEADLINES[row.name], row.before, row.after, row.change] for row in head]
            said.append(table([f"{MODELS[path]}, on the test photos", "before", "after", ""], lines))
    settings = [
        [f"`{name}`", number(value.get("old")), number(value.get("new"))]
        for values in params.values()
        for name, value in sorted(values.items())
    ]
    if settings:
        said.append(table(["parameter", "before", "after"], settings))
    said += [part for part in (learned, pictures) if part]
    if not (changed or settings or learned or pictures):
        said.append("No metric, parameter or plot changed.")
    everything = [
        [f"`{path}`", number(row.name), row.before, row.after] for path in sorted(changed) for row in changed[path]
    ]
    if everything:
        rest = table(["file", "metric", "before", "after"], everything)
        folded = f"<details><summary>Every metric that changed ({len(everything)})</summary>\n\n{rest}\n\n</details>"
        too_long = sum(map(len, said)) + len(folded) > LONGEST
        said.append("There are too many further changes to list them here." if too_long else folded)
    return "\n\n".join(said)[:LONGEST] + "\n"


def images(url: str, before: str, after: str, changed: Iterable[str]) -> str:
    """Pictures that are committed, side by side."""
    lines = [[f"![{path}]({url}/blob/{commit}/{path}?raw=true)" for commit in (before, after)] for path in changed]
    return table(["before", "after"], lines) if lines else ""


def _ran(*command: str) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def _committed(commit: str, path: Path) -> str:
    """The file's text in that commit; empty where it is not in it."""
    listed = _ran("git", "ls-tree", "--name-only", commit, "--", str(path))
    return _ran("git", "show", f"{commit}:{path}") if listed.strip() else ""


def _diff(kind: str, commit: str, *options: str) -> Diff:
    # DVC says on stderr which files an old commit has not got; what it has is compared all the same.
    return msgspec.json.decode(_ran(*DVC, kind, "diff", "--json", *options, commit) or "{}", type=Diff)


@click.command()
@click.argument("base")
@click.option("--url", help="The repository's address, for pictures before and after.")
@click.option("--head", default="HEAD", help="The commit whose pictures are shown as after.")
def main(base: str, url: str | None, head: str) -> None:
    """Print what the working tree changes against the commit BASE, as Markdown."""
    before, after = (_ran("git", "rev-parse", "--verify", "--end-of-options", name).strip() for name in (base, head))
    old, new = _committed(before, HISTORY), HISTORY.read_text() if HISTORY.exists() else ""
    changed = _ran("git", "diff", "--name-only", before, after, "--", *map(str, PICTURES)).split()
    click.echo(
        markdown(
            _diff("metrics", before, "--all"),
            _diff("params", before),
            curves(old, new) if new and new != old else "",
            images(url, before, after, changed) if url else "",
            base=before[:12],
        ),
        nl=False,
    )


if __name__ == "__main__":
    main()
