"""The figures as tables: for the terminal, the report and the documentation."""

import re
from typing import Any, Final

from ops.bench.errors import BenchError
from ops.bench.servers import SERVERS
from ops.bench.targets import Target, judge

TITLES: Final = {spec.name: spec.title for spec in SERVERS}
MARKER: Final = "<!-- bench-serve: {} -->\n"
NOT_MEASURED: Final = "| not measured yet |\n|---|\n"


def rows(document: dict[str, Any]) -> str:
    """Each server's figures at each level, as Markdown."""
    speed = document["speed"]
    levels = list(dict.fromkeys(clients for found in speed.values() for clients in found))
    lines = [
        "| requests per second (p50, p99 in ms) | " + " | ".join(f"{level} clients" for level in levels) + " |",
        "|---" * (len(levels) + 1) + "|",
    ]
    for name, found in speed.items():
        cells = [_cell(found.get(level)) for level in levels]
        lines.append(f"| {_title(name)} | {' | '.join(cells)} |")
    return "\n".join(lines).replace(" 1 clients", " 1 client") + "\n"


def _title(name: str) -> str:
    return TITLES.get(name, f"`{name}`")


def _cell(level: dict[str, Any] | None) -> str:
    return f"{level['rate']:.1f} ({level['p50_ms']:.1f}, {level['p99_ms']:.1f})" if level else ""


def separate(document: dict[str, Any]) -> str:
    """The figures with the load generator on cores of its own, as Markdown."""
    part = document.get("separate")
    if not part:
        return NOT_MEASURED
    levels = ("1 client", "4 a lane", "8 a lane", "32 a lane, at most 256")
    lines = [f"| lanes | photos | requests per second (p50, p99 in ms) | {' | '.join(levels)} |", "|---" * 7 + "|"]
    for measured in part["measured"]:
        for name, found in measured["speed"].items():
            cells = [str(measured["lanes"]), measured["photos"], _title(name), *map(_cell, found.values())]
            lines.append(f"| {' | '.join(cells)} |")
    lines += [
        f"| {lanes} | | left out: needs {lanes + 1} cores, this machine has {document['machine']['cores']} | | | | |"
        for lanes in part["left_out"]
    ]
    return "\n".join(lines) + "\n"


def costs(document: dict[str, Any]) -> str:
    """Start, CPU and memory of each server, as Markdown."""
    memory = document.get("memory", {})
    lines = [
        "| | start to answer | CPU a request | memory at rest | 128 clients | 128 clients, 12 megapixels |",
        "|---|---|---|---|---|---|",
    ]
    for name, levels in document["speed"].items():
        if not levels:
            continue
        last = list(levels.values())[-1]
        start = document["starts"].get(name)
        cells = [f"{start['answered_s']:.2f} s" if start else "", f"{last['cpu_ms']:.1f} ms"]
        found = memory.get(name)
        cells += [f"{found[part]:.0f} MB" if found else "" for part in ("idle_mb", "mixed_mb", "large_mb")]
        lines.append(f"| {_title(name)} | {' | '.join(cells)} |")
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


def siege(document: dict[str, Any]) -> str:
    """What honest clients got with and without misbehaving ones, as Markdown."""
    with_, without = document["with"], document["without"]
    judged = Target("p99, of p99 without them", with_["p99_ms"] / without["p99_ms"], 1.2, unit="times")
    failed = Target("failed requests of honest clients", document["failed"], 0, digits=0)
    misdeeds = f"{document['misbehaving']} misbehave, {sum(document['misdeeds'].values()):,} times"
    lines = [
        f"| {document['seconds'] / 60:.0f} minutes, {document['clients']} clients | {misdeeds} | they are away |",
        "|---|---|---|",
        f"| answers | {with_['answers']:,} | {without['answers']:,} |",
        f"| p50 | {with_['p50_ms']:.1f} ms | {without['p50_ms']:.1f} ms |",
        f"| p99 | {with_['p99_ms']:.1f} ms | {without['p99_ms']:.1f} ms |",
    ]
    for what, bound, figure, verdict in (judged.row(), failed.row()):
        lines.append(f"| {what} | {figure}, {bound} | {verdict} |")
    return "\n".join(lines) + "\n"


def loop(document: dict[str, Any]) -> str:
    """Whether samples and challenger do what they promise, and what they cost, as Markdown."""
    stream, shadow = document["stream"], document["challenger"]
    lines = [
        "| | measured | asked |",
        "|---|---|---|",
        f"| unsure or disputed ones kept, of {stream['unsure_or_disputed']:,} in {stream['photos']:,} photos at "
        f"{stream['rate']:.0f} a second | {stream['kept']:.2%} | at least 99 % |",
        f"| answers that are not the model's, of {shadow['requests']:,} with a challenger, which answered "
        f"{shadow['challenger_answers']:,.0f} | {shadow['answered_otherwise']} | 0 |",
    ]
    for name, levels in document["cost"].items():
        for clients, found in levels.items():
            cost = f"rate {found['rate']:+.1%}, p99 {found['p99_ms']:+.1%}"
            lines.append(f"| {name}, on against off, {clients} clients | {cost} | within 2 % |")
    for kind, found in document["caps"].items():
        cap = f"at most {found[f'samples_{kind}']:,}"
        lines.append(f"| {kind} of samples, of {found['written']:,} written | {found[f'most_{kind}']:,} | {cap} |")
    return "\n".join(lines).replace(" 1 clients", " 1 client") + "\n"


def front(document: dict[str, Any]) -> str:
    """What the front process does by itself, as Markdown."""
    speed = document["speed"]
    levels = list(next(iter(speed.values())))
    lines = [
        "| requests per second (processor time of the front process) | "
        + " | ".join(f"{level} clients" for level in levels)
        + " |",
        "|---" * (len(levels) + 1) + "|",
    ]
    for name, found in speed.items():
        cells = [f"{level['rate']:,.0f} ({level['cpu_ms']:.2f} ms)" for level in found.values()]
        lines.append(f"| {'`catsdogs serve`' if name == 'this' else _title(name)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def report(document: dict[str, Any]) -> str:
    """All tables, for the terminal and for ``reports/bench-serve.md``."""
    machine, settings = document["machine"], document["settings"]
    sizes = ", ".join(f"{share} % {size}" for size, share in settings["mix"].items())
    speeds = [document["speed"], *(part["speed"] for part in document.get("separate", {}).get("measured", []))]
    share, others = (_most(speeds, name) for name in ("generator_share", "others_share"))
    versions = ", ".join(f"{name} {version}" for name, version in document["versions"].items())
    lines = [
        "# How fast the service answers",
        "",
        f"Written by `python -m ops.bench` on {document['written']}: {machine['processor']}, {machine['cores']} cores "
        f"({', '.join(machine['flags'])}); {versions}. Photos: {sizes}. {settings['rounds']} rounds of "
        f"{settings['seconds']} s for each server at each level; medians. The load generator took at most "
        f"{share * machine['cores']:.2f} cores, other programs at most {others:.1%} of the machine.",
        "",
    ]
    if any(document["speed"].values()):
        lines += ["Load generator and server on the same cores:", "", rows(document), costs(document)]
    if "separate" in document:
        lines += [
            "Load generator on cores of its own, one core for each lane, int8; the bare limit is the better of threads "
            "and processes:",
            "",
            separate(document),
        ]
    lines.append(targets(document))
    if document["tried"]:
        lines += ["| tried | requests per second, 32 clients |", "|---|---|"]
        for name, tried in document["tried"].items():
            for line in tried:
                mark = " (kept)" if line["variant"] == document["variants"][name] else ""
                lines.append(f"| {name}: {line['variant']}{mark} | {line['rate']:.1f} |")
        lines.append("")
    return "\n".join(lines)


def _most(speeds: list[dict[str, Any]], name: str) -> float:
    levels = (level for speed in speeds for found in speed.values() for level in found.values())
    return max((level.get(name, 0.0) for level in levels), default=0.0)


def batches(document: dict[str, Any]) -> str:
    """A batch as a form and as base64, as Markdown."""
    lines = ["| pictures per second | as a form | as base64 | |", "|---|---|---|---|"]
    for line, found in document["lines"].items():
        title = f"a line of {line} Mbit/s" if line else "client on the same machine"
        lines.append(f"| {title} | {found['form']:.1f} | {found['base64']:.1f} | {found['ratio']:.2f} times |")
    return "\n".join(lines) + "\n"


def into_page(page: str, document: dict[str, Any], others: dict[str, dict[str, Any]]) -> str:
    """Put each table below its marker comment, in place of what is there; ``others`` are further reports by name.

    Raises:
        BenchError: a marker is missing.
    """
    tables = {
        "speed": rows(document),
        "costs": costs(document),
        "separate": separate(document),
        "targets": targets(document),
    } | {
        each.__name__: each(others[each.__name__]) if each.__name__ in others else NOT_MEASURED
        for each in (soak, siege, loop, front, batches)
    }
    for name, table in tables.items():
        marker = MARKER.format(name)
        if marker not in page:
            raise BenchError(f"the page has no {marker.strip()}")
        before, _, after = page.partition(marker)
        page = before + marker + table + re.sub(r"\A(\|.*\n)+", "", after)
    return page
