"""Whether ``dvc.lock`` is what code, parameters and committed reports say: exits 1 and names the stages if not.

    python -m ops.stale

Works without the photographs: DVC then compares what the lock says a stage made with what it says the next one read.
What is here is compared itself. Needs the extra ``train``.
"""

import re
import subprocess
import sys
from typing import Any, Final

import msgspec

from ops.changes import DVC
from shared.addresses import without_secrets

# Where the photographs lie is each user's own affair (`make pipeline SOURCE=…`): the lock names the files the shipped
# model was made from, params.yaml the public download. What they held is in the lock as well, and is compared.
PLACE: Final = {"params.yaml": {"fetch": "modified"}}
NOT_HERE: Final = {"data/gathered": "deleted"}  # as all data; what the lock says of it is compared by the dry run


def stages(said: str) -> list[str]:
    """The stages that a dry ``dvc repro`` would run, from what it said.

    The first stage that is out of date and whose data is not here ends it: that one cannot be run, even for show.
    """
    return re.findall(r"^(?:Running stage|ERROR: failed to reproduce) '([^']+)'", said, re.MULTILINE)


def only_the_place(status: list[dict[str, Any]]) -> bool:
    """Whether nothing but the place of the photographs differs, given fetch's part of ``dvc status --json``."""
    differing = [part for part in status if not ("changed outs" in part and _absent(part["changed outs"]))]
    return differing in [[{"changed deps": PLACE | absent}] for absent in ({}, NOT_HERE)]


def _absent(outs: dict[str, str]) -> bool:
    return set(outs.values()) <= {"not in cache", "deleted"}


def stale() -> list[str]:
    """The stages whose part of the lock is out of date."""
    dry = subprocess.run([*DVC, "repro", "--dry", "--allow-missing"], check=False, capture_output=True, text=True)
    found = stages(dry.stdout + dry.stderr)
    if dry.returncode and "failed to reproduce" not in dry.stderr:
        raise SystemExit(without_secrets(f"dvc repro --dry failed:\n{dry.stdout}{dry.stderr}"))
    if "fetch" in found:
        asked = subprocess.run([*DVC, "status", "--json", "fetch"], check=True, stdout=subprocess.PIPE, text=True)
        if only_the_place(msgspec.json.decode(asked.stdout).get("fetch", [])):
            found.remove("fetch")
    return found


if __name__ == "__main__":
    outdated = stale()
    if outdated:
        sys.exit(f"Out of date: {', '.join(outdated)}. Run dvc repro and commit dvc.lock with what it made.")
    print("Nothing is stale.")
