"""Tables of README.md and docs/benchmarks.md: the figures of the model that ships, and what ``training.bench`` found.

    python -m training.scoreboard     # puts the tables into both pages

They are generated here from the reports, and tests compare the pages with those.
"""

import json
import re
from pathlib import Path
from typing import Any, Final

from shared.files import write_whole
from shared.intervals import Interval
from training.robustness import JUDGED
from training.stage import REPORTS

PAGE: Final = Path("docs/benchmarks.md")
HEADING: Final = "## How fast it trains\n"
README: Final = Path("README.md")
SHIPPED: Final = [Path(f"serving/models/cats-dogs.{precision}.json") for precision in ("int8", "fp32")]
MODEL_HEADINGS: Final = {PAGE: "## The model\n", README: "## How good it is\n"}
# The rows that README.md has.
SHORT: Final = (
    "test photos",
    "right, original labels",
    "right, audited labels",
    "right where answered, audited labels",
    "looked at again",
    "milliseconds of an answer, mean with second looks",
)


def model_rows(figures: dict[str, Any]) -> dict[str, str]:
    """The figures of one file, ``metrics.json``, by what they are; those of labels say which."""
    audited = figures["audited"]
    cells = [cell for cell in figures["robustness"].values() if cell["severity"] == JUDGED]
    worst = max(cells, key=lambda cell: float(cell["wrong_when_answered"]["value"]))

    def share(interval: dict[str, float]) -> str:
        return Interval(**interval).text()

    return {
        "test photos": f"{figures['pictures']:,}",
        "right, original labels": share(figures["accuracy"]),
        "right, audited labels": share(audited["accuracy"]),
        "right, first look alone, audited labels": share(figures["first_look"]["audited"]["accuracy"]),
        "looked at again": share(figures["looked_again"]),
        "log loss, original labels": f"{figures['log_loss']:.4f}",
        "log loss, audited labels": f"{audited['log_loss']['value']:.4f}",
        "calibration error, audited labels": share(audited["calibration_error"]),
        'answered, rather than "unsure", audited labels': share(audited["answered"]),
        "right where answered, audited labels": share(audited["accuracy_when_answered"]),
        "answered wrongly, of all, audited labels": share(audited["answered_wrong"]),
        f"wrong where answered, worst corruption of severity {JUDGED}, audited labels": (
            f"{share(worst['wrong_when_answered'])}, {worst['kind']}"
        ),
        "other things called unsure": share(figures["strangers"]["strangers_unsure"]),
        "milliseconds of the first look, one thread": f"{figures['milliseconds']:.1f}",
        "milliseconds of an answer, mean with second looks": f"{figures['milliseconds_mean']:.1f}",
        "megabytes": f"{figures['megabytes']:.1f}",
    }


def model_table(page: Path, int8: dict[str, Any], fp32: dict[str, Any]) -> str:
    """The table of the model that ships, as a page has it."""
    both = model_rows(int8), model_rows(fp32)
    names = SHORT if page == README else both[0]
    lines = ["| what | int8, which serves | fp32 |", "|---|---|---|"]
    lines += [f"| {name} | {' | '.join(rows[name] for rows in both)} |" for name in names]
    return "\n".join(lines) + "\n"


def table(document: dict[str, Any]) -> str:
    """The main figures as Markdown rows, as docs/benchmarks.md has them."""
    speed = document["speed"]
    plain, ours, ratio = speed["plain"], speed["ours"], speed["ratio"]
    lines = [
        "| | the loop of tutorials | `catsdogs train` | |",
        "|---|---|---|---|",
        f"| pictures per second, median of {len(ratio['pairs'])} turns "
        f"| {plain['pictures_per_second']:.1f} | {ours['pictures_per_second']:.1f} "
        f"| **{ratio['median']:.1f} times** ({ratio['low']:.1f} to {ratio['high']:.1f}) |",
    ]
    if "accuracy" in document:
        accuracy = document["accuracy"]
        shares = [Interval(**accuracy[name]).text() for name in ("plain", "ours")]
        lines.append(
            f"| right on {accuracy['comparison']['n']:,} validation photos after one epoch of "
            f"{accuracy['trained_on']:,} | {shares[0]} | {shares[1]} | {accuracy['verdict']} |"
        )
    lines += [
        f"| peak memory with {line['pictures']:,} photos | | {line['peak_mb']:,.0f} MB "
        f"| {line['anonymous_mb']:,.0f} MB of it not files |"
        for line in document.get("memory", [])
    ]
    return "\n".join(lines) + "\n"


def report(document: dict[str, Any]) -> str:
    """All figures as Markdown."""
    machine = document["machine"]
    lines = [
        "# How fast training is",
        "",
        f"Written by `python -m training.bench` on {document['written']}: {machine['processor']}, "
        f"{machine['cores']} cores ({', '.join(machine['flags'])}), torch {machine['torch']}, "
        f"{document['settings']['model']}, batches of {document['settings']['batch_size']}.",
        "",
        table(document),
    ]
    once = document["speed"]["ours"]["once_seconds"]
    seconds = [document["speed"][name]["whole_seconds"] for name in ("plain", "ours")]
    lines += [
        f"The whole epoch took {seconds[0]:.0f} s and {seconds[1]:.0f} s. Before it, ours spent "
        f"{once['decoding']:.0f} s on decoding and {once['probe']:.0f} s on the probe that its head starts from, once "
        "for all epochs.",
        "",
    ]
    if "ablation" in document:
        lines += ["| one thing taken away | pictures per second | of all |", "|---|---|---|"]
        lines += [
            f"| {line['what']} | {line['pictures_per_second']:.1f} | {line['against_all']:.0%} |"
            for line in document["ablation"]
        ]
        lines.append("")
    lines += ["What was chosen, and why:", "", *(f"- {choice}" for choice in document["choices"])]
    return "\n".join(lines) + "\n"


def into_page(page: str, heading: str, new: str) -> str:
    """Put a table in the place of the first one below a heading."""
    before, heading, after = page.partition(heading)
    return before + heading + re.sub(r"(?m)(^\|.*\n)+", lambda _: new, after, count=1)


if __name__ == "__main__":
    shipped = [json.loads(path.read_text()) for path in SHIPPED]
    for path, title in MODEL_HEADINGS.items():
        write_whole(path, into_page(path.read_text(), title, model_table(path, *shipped)))
    found = json.loads((REPORTS / "bench-train.json").read_text())
    write_whole(PAGE, into_page(PAGE.read_text(), HEADING, table(found)))
