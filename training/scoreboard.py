"""What ``training.bench`` found, as tables.

    python -m training.scoreboard     # puts the table of reports/bench-train.json into docs/benchmarks.md

That table is generated here, and a test compares it with the report.
"""

import json
import re
from pathlib import Path
from typing import Any, Final

from shared.files import write_whole
from shared.intervals import Interval
from training.stage import REPORTS

PAGE: Final = Path("docs/benchmarks.md")
HEADING: Final = "## How fast it trains\n"


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


def into_page(page: str, document: dict[str, Any]) -> str:
    """Put the main figures in the place of the table below the page's heading ``HEADING``."""
    before, heading, after = page.partition(HEADING)
    return before + heading + re.sub(r"(?m)(^\|.*\n)+", lambda _: table(document), after, count=1)


if __name__ == "__main__":
    found = json.loads((REPORTS / "bench-train.json").read_text())
    write_whole(PAGE, into_page(PAGE.read_text(), found))
