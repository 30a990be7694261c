"""What was found, as tables: for the terminal, and for docs/benchmarks.md, whose tables are made here only."""

import re
from typing import Any, Final

from ops.bench.entrants import ENTRANTS
from ops.bench.targets import judge

HEADING: Final = "## How fast it answers\n"
NOT_MEASURED: Final = "| not measured yet |\n|---|\n"


def rows(document: dict[str, Any]) -> str:
    """Everybody's figures at every level, as Markdown."""
    speed = document["speed"]
    levels = list(dict.fromkeys(clients for found in speed.values() for clients in found))
    lines = [
        "| requests per second (p50, p99 in ms) | " + " | ".join(f"{level} clients" for level in levels) + " |",
        "|---" * (len(levels) + 1) + "|",
    ]
    for entrant in ENTRANTS:
        if entrant.name in speed:
            cells = [_cell(speed[entrant.name].get(level)) for level in levels]
            lines.append(f"| {entrant.title} | {' | '.join(cells)} |")
    return "\n".join(lines).replace(" 1 clients", " 1 client") + "\n"


def _cell(level: dict[str, Any] | None) -> str:
    return f"{level['rate']:.1f} ({level['p50_ms']:.1f}, {level['p99_ms']:.1f})" if level else ""


def costs(document: dict[str, Any]) -> str:
    """What each server costs, as Markdown."""
    memory = document.get("memory", {})
    lines = [
        "| | start to answer | CPU a request | memory at rest | 128 clients | 128 clients, 12 megapixels |",
        "|---|---|---|---|---|---|",
    ]
    for entrant in ENTRANTS:
        if not document["speed"].get(entrant.name):
            continue
        last = list(document["speed"][entrant.name].values())[-1]
        start = document["starts"].get(entrant.name)
        cells = [f"{start['answered_s']:.2f} s" if start else "", f"{last['cpu_ms']:.1f} ms"]
        found = memory.get(entrant.name)
        cells += [f"{found[name]:.0f} MB" if found else "" for name in ("idle_mb", "mixed_mb", "large_mb")]
        lines.append(f"| {entrant.title} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def targets(document: dict[str, Any]) -> str:
    """Each figure against its target, as Markdown."""
    lines = ["| | target | measured | |", "|---|---|---|---|"]
    lines += [f"| {' | '.join(target.row())} |" for target in judge(document)]
    return "\n".join(lines) + "\n"


def soak(document: dict[str, Any]) -> str:
    """The soak's first and last tenth, as Markdown."""
    first, last = document["first"], document["last"]
    lines = [f"| {document['requests']:,} requests | first tenth | last tenth |", "|---|---|---|"]
    for name, what, form in (
        ("memory_mb", "memory", "{:.0f} MB"),
        ("p50_ms", "p50", "{:.1f} ms"),
        ("p99_ms", "p99", "{:.1f} ms"),
        ("files", "open files", "{:.0f}"),
        ("threads", "threads", "{:.0f}"),
    ):
        lines.append(f"| {what} | {form.format(first[name])} | {form.format(last[name])} |")
    return "\n".join(lines) + "\n"


def report(document: dict[str, Any]) -> str:
    """All of it, for the terminal and for ``reports/bench-serve.md``."""
    machine, settings = document["machine"], document["settings"]
    sizes = ", ".join(f"{share} % {size}" for size, share in settings["mix"].items())
    share, others = (_most(document, name) for name in ("generator_share", "others_share"))
    versions = ", ".join(f"{name} {version}" for name, version in document["versions"].items())
    lines = [
        "# How fast the service answers",
        "",
        f"Written by `python -m ops.bench` on {document['written']}: {machine['processor']}, {machine['cores']} cores "
        f"({', '.join(machine['flags'])}); {versions}. Photos: {sizes}. {settings['rounds']} rounds of "
        f"{settings['seconds']} s for each server at each level; medians. The load generator took at most "
        f"{share:.1%} of the machine, other programs at most {others:.1%}.",
        "",
        rows(document),
        costs(document),
        targets(document),
    ]
    if document["tried"]:
        lines += ["| tried | requests per second, 32 clients |", "|---|---|"]
        for name, tried in document["tried"].items():
            for line in tried:
                mark = " (kept)" if line["variant"] == document["variants"][name] else ""
                lines.append(f"| {name}: {line['variant']}{mark} | {line['rate']:.1f} |")
        lines.append("")
    return "\n".join(lines)


def _most(document: dict[str, Any], name: str) -> float:
    return max((level.get(name, 0) for levels in document["speed"].values() for level in levels.values()), default=0)


def into_page(page: str, document: dict[str, Any], soaked: dict[str, Any] | None) -> str:
    """Put the tables in the places of those below the page's heading ``HEADING``, in their order."""
    before, heading, after = page.partition(HEADING)
    section, next_heading, rest = after.partition("\n## ")
    tables = [rows(document), costs(document), targets(document), *([soak(soaked)] if soaked else [])]
    place = iter(tables)
    section = re.sub(r"(?m)(^\|.*\n)+", lambda found: next(place, found[0]), section)
    return before + heading + section + next_heading + rest
