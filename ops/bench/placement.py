"""Which cores a server and the load generator run on."""

import os
from dataclasses import dataclass
from typing import Final

# Lanes of the service in the arrangement with the generator on cores of its own, one core for each lane.
LANES: Final = (1, 4, 12)
GENERATOR_CORES: Final = 4


@dataclass(frozen=True)
class Placement:
    """Cores of the server, and of the load generator."""

    server: frozenset[int]
    generator: frozenset[int]


def shared() -> Placement:
    """Both on all usable cores."""
    usable = frozenset(os.sched_getaffinity(0))
    return Placement(usable, usable)


def separate(lanes: int) -> Placement | None:
    """The server on the first ``lanes`` cores, the generator on up to four others; None if there are too few.

    The generator gets the last cores: neighbours in number are often two threads of one physical core.
    """
    usable = sorted(os.sched_getaffinity(0))
    if lanes >= len(usable):
        return None
    return Placement(frozenset(usable[:lanes]), frozenset(usable[lanes:][-GENERATOR_CORES:]))
