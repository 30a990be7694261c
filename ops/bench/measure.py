"""One run of the benchmark: every part that was asked for, as one document."""

import datetime
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ops.bench import memory, placement, requests, scenarios
from ops.bench.errors import BenchError
from ops.bench.rounds import Arrangement, Plan, Rounds, tune
from ops.bench.servers import Programs, ServerSpec, versions
from shared import hardware

ARRANGEMENTS: Final = ("shared", "separate")
PARTS: Final = ("speed", "memory", "overload", "fairness")
LIBRARIES: Final = ("onnxruntime", "numpy", "pillow")
FRAMEWORKS: Final = ("uvicorn", "starlette")
PEERS: Final = ("fastapi", "litserve", "bentoml", "pydantic")
# Clients for each lane, beside a lone one; no more in all than a queue of the service holds.
CLIENTS_PER_LANE: Final = (4, 8, 32)
MAX_CLIENTS: Final = 256


@dataclass(frozen=True)
class Wanted:
    """What to measure; ``clients`` are the levels of load on shared cores."""

    specs: list[ServerSpec]
    arrangements: tuple[str, ...]
    clients: list[int]
    parts: set[str]
    tune: bool


def measure(plan: Plan, wanted: Wanted, photos: requests.Photos, folder: Path) -> dict[str, Any]:
    """Measure; returns the report.

    Args:
        plan: how long.
        wanted: what.
        photos: what is sent.
        folder: where requests are written.

    Raises:
        BenchError: a program is missing, does not start, or answers otherwise than the model.
    """
    folders = {name: photos.write(folder / name, mix) for name, mix in requests.MIXES.items()}
    document: dict[str, Any] = {
        "written": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": hardware.describe(),
        "versions": found_versions(plan.programs, peers=any(spec.kind == "peer" for spec in wanted.specs)),
        "settings": {
            "rounds": plan.rounds,
            "seconds": plan.seconds,
            "warm": plan.warm,
            "clients": wanted.clients,
            "mix": requests.MIX,
            "photo_bytes": {size: [len(data) for data in files] for size, files in photos.files.items()},
            "also": [spec.name for spec in wanted.specs if spec.kind == "also"],
        },
    }
    shared = Arrangement("shared cores", wanted.specs, placement.shared(), folders["mixed"], wanted.clients)
    document["tried"] = tried = tune(plan, shared) if wanted.tune else {}
    variants = {spec.name: spec.fastest(tried.get(spec.name, [])) for spec in wanted.specs}
    document["variants"] = {name: variant.what for name, variant in variants.items()}

    own = Rounds(plan, shared, variants)
    apart = separate(wanted.specs, folders)
    others = [Rounds(plan, arrangement, variants) for arrangement in apart]
    if "speed" in wanted.parts:
        taken = [own] * ("shared" in wanted.arrangements) + others * ("separate" in wanted.arrangements)
        for number in range(plan.rounds):
            for rounds in taken:
                rounds.take(number + 1)
    document |= own.result()
    if "speed" in wanted.parts and "separate" in wanted.arrangements:
        document["separate"] = {
            "measured": [
                {
                    "lanes": len(rounds.arrangement.placement.server),
                    "generator_cores": len(rounds.arrangement.placement.generator),
                    "photos": rounds.arrangement.folder.name,
                    "speed": rounds.result()["speed"],
                }
                for rounds in others
            ],
            "left_out": [lanes for lanes in placement.LANES if not placement.separate(lanes)],
        }

    servers = [spec for spec in wanted.specs if spec.kind != "raw"]
    if "memory" in wanted.parts:
        document["memory"] = memory.measure(plan, servers, variants, folders["mixed"], folders["large"])
    ours = next((spec for spec in servers if spec.kind == "ours"), None)
    if ours and "overload" in wanted.parts:
        document["overload"] = scenarios.overload(ours, plan.programs, photos, seconds=plan.seconds)
    if ours and "fairness" in wanted.parts:
        document["fairness"] = scenarios.fairness(ours, plan.programs, photos)
    return document


def separate(specs: list[ServerSpec], folders: dict[str, Path]) -> list[Arrangement]:
    """The arrangements with the load generator on cores of its own that fit this machine; the int8 file only."""
    taking = [spec for spec in specs if spec.precision == "int8"]
    return [
        Arrangement(
            f"{lanes} lane{'s' * (lanes > 1)}, {photos} photos",
            taking,
            where,
            folders[photos],
            [1, *(min(MAX_CLIENTS, each * lanes) for each in CLIENTS_PER_LANE)],
        )
        for lanes in placement.LANES
        if (where := placement.separate(lanes))
        for photos in ("uniform", "mixed")
    ]


def found_versions(programs: Programs, *, peers: bool) -> dict[str, str]:
    """Versions of what is measured.

    Raises:
        BenchError: the service and its peers have different versions, so the comparison would be of libraries.
    """
    ours = versions(programs.python, (*LIBRARIES, *FRAMEWORKS))
    if not peers:
        return ours
    theirs = versions(programs.peers, (*LIBRARIES, *FRAMEWORKS, *PEERS))
    differ = [name for name in (*LIBRARIES, *FRAMEWORKS) if ours[name] != theirs[name]]
    if differ:
        wanted = " ".join(f"{name}=={ours[name]}" for name in differ)
        raise BenchError(f"the peers run on other versions than the service: {programs.peers} -m pip install {wanted}")
    return theirs
