"""``serving/models`` and the registry's champion: changed together, and one again after an interruption.

A change of both is written down before it begins, in ``serving/models/.cats-dogs.change.json``, and that file goes
last. Whatever ends a command in between, the next one finds it and makes the change again, from the registry's files.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

import mlflow
import msgspec
from mlflow.entities.model_registry import ModelVersion

from shared.files import write_whole
from training.promotion import registry
from training.promotion.files import NAME, Files, raw_contract, read
from training.promotion.registry import download, version_name
from training.stage import StageError

SERVED: Final = Path("serving/models")
CHANGE: Final = SERVED / f".{NAME}.change.json"


class Change(msgspec.Struct, frozen=True):
    """``version`` becomes champion, and versions get tags, by number."""

    version: str
    tags: dict[str, dict[str, str]]


class Champion(NamedTuple):
    """What serves; ``version`` is None for files that the registry does not know yet."""

    files: Files
    version: ModelVersion | None

    @property
    def name(self) -> str:
        """What to call it."""
        return version_name(self.version) if self.version else str(SERVED)


class UnreadableError(StageError):
    """What lies in ``serving/models`` is no model of this project."""


@contextmanager
def exclusive() -> Iterator[None]:
    """Keep other commands away from ``serving/models`` while the block runs.

    Raises:
        StageError: another one is at work.
    """
    SERVED.mkdir(parents=True, exist_ok=True)
    folder = os.open(SERVED, os.O_RDONLY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StageError(f"{SERVED}: another command is changing it; wait for its end") from error
        yield
    finally:
        os.close(folder)


def serve(client: mlflow.MlflowClient, version: ModelVersion, files: Files, tags: dict[str, dict[str, str]]) -> None:
    """Make a version champion and put its files into ``serving/models``.

    What needs disk space comes before anything changes; a precision that the version does not have is removed last.

    Args:
        client: of the registry.
        version: the new champion.
        files: its files, as the registry keeps them.
        tags: to set with it, by the number of their version.
    """
    number = registry.number(version)
    tags = tags | {number: {registry.SERVED: registry.now()} | tags.get(number, {})}
    contents = files.named(version_name(version)).by_name()
    try:
        for name, data in contents.items():
            write_whole(SERVED / f".{name}.partial", data)
        write_whole(CHANGE, msgspec.json.encode(Change(number, tags)))
        for tagged, values in tags.items():
            registry.tag(client, tagged, values)
        client.set_registered_model_alias(NAME, registry.CHAMPION, number)
        for name in contents:
            (SERVED / f".{name}.partial").replace(SERVED / name)
        for path in SERVED.glob(f"{NAME}.*"):
            if path.name not in contents:
                path.unlink()
        CHANGE.unlink()
    finally:
        _tidy()


def finish(client: mlflow.MlflowClient) -> None:
    """Finish the change that an earlier command began, if there is one, and remove what it left half-written."""
    _tidy()
    if CHANGE.exists():
        change = msgspec.json.decode(CHANGE.read_bytes(), type=Change)
        version = client.get_model_version(NAME, change.version)
        print(f"{version_name(version)}: finishing a change that was interrupted")
        serve(client, version, download(version), change.tags)


def champion_of(client: mlflow.MlflowClient, *, dry_run: bool = False) -> Champion | None:
    """What serves: the files in ``serving/models``, else the registry's champion, else None.

    If the registry has another champion, or does not know the files, it follows them; so ``rollback`` and ``restore``
    can bring them back.

    Args:
        client: of the registry.
        dry_run: say so only.

    Raises:
        UnreadableError: a file there is no model of this project.
    """
    alias = registry.champion(client)
    served = read(SERVED)
    if not served.models:
        return Champion(download(alias), alias) if alias else None
    try:
        files = served.named(None)
        record = raw_contract(files.answering).get("test")
    except Exception as error:  # protobuf's own, for a file that is not a model
        raise UnreadableError(
            f"{SERVED}: not a model of this project ({error}); `catsdogs restore VERSION` puts one back"
        ) from error
    version = registry.find_version(client, files)
    if version and alias and registry.number(version) == registry.number(alias):
        return Champion(files, version)
    known = version_name(version) if version else "a model that the registry does not know"
    print(f"{SERVED} holds {known}, not {version_name(alias) if alias else 'a champion'}: it is champion, as it serves")
    if dry_run:
        return Champion(files, version)
    if version is None:
        tags = {registry.DECISION: "served already"}
        if record:
            tags |= {"candidate_accuracy": f"{record['accuracy']['value']:.6g}"}
            tags |= {"candidate_log_loss": f"{record['log_loss']:.6g}"}
        version = registry.register(client, files, tags)
    followed = {registry.SERVED: registry.now()}
    if alias:
        followed[registry.PREVIOUS] = registry.number(alias)
    registry.tag(client, registry.number(version), followed)
    client.set_registered_model_alias(NAME, registry.CHAMPION, registry.number(version))
    return Champion(files, version)


def _tidy() -> None:
    for aside in SERVED.glob(".*.partial"):
        aside.unlink()
