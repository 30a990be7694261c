"""Bring back what served before: the champion before this one, or any version of the registry.

catsdogs rollback                 # the previous champion serves again
catsdogs restore --list           # all versions
catsdogs restore 3                # version 3 serves
"""

from contextlib import suppress
from datetime import UTC, datetime

import mlflow
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from training import tracking
from training.promotion import registry
from training.promotion.files import NAME, Files, refusal
from training.promotion.registry import version_name
from training.promotion.served import SERVED, UnreadableError, champion_of, exclusive, finish, serve
from training.stage import StageError


def rollback() -> None:
    """Make the previous champion the champion again, and restore its files.

    Raises:
        StageError: there is none, its files must not serve, or the store fails.
    """
    with tracking.store() as client, exclusive():
        finish(client)
        champion = champion_of(client)
        if champion is None or champion.version is None:
            raise StageError("there is no champion to roll back from; `catsdogs promote` makes one")
        previous = _previous(client, champion.version)
        files = _checked(previous)
        serve(client, previous, files, {registry.number(champion.version): {registry.ROLLED_BACK: registry.now()}})
    print(f"{version_name(previous)}: champion again, in {SERVED}; {champion.name} is kept in the registry")


def restore(number: str) -> None:
    """Make a version the champion, whatever was decided about it, and put its files into ``serving/models``.

    Raises:
        StageError: there is no such version, its files must not serve, or the store fails.
    """
    with tracking.store() as client, exclusive():
        finish(client)
        with suppress(UnreadableError):  # what cannot be read cannot be registered, and goes
            champion_of(client)
        version = _find(client, number)
        name = version_name(version)
        champion = registry.champion(client)
        files = _checked(version)
        before = {registry.PREVIOUS: registry.number(champion)} if champion and version_name(champion) != name else {}
        serve(client, version, files, {registry.number(version): before})
    print(f"{name}: champion, in {SERVED}")


def table() -> str:
    """Every version, the newest first."""
    with tracking.store() as client:
        champion = registry.champion(client)
        rows: list[tuple[str, ...]] = [("version", "decision", "accuracy", "log loss", "registered", "")]
        for version in registry.versions(client):
            state = "champion" if champion and version_name(champion) == version_name(version) else ""
            if registry.rolled_back(version):
                state = f"rolled back {version.tags[registry.ROLLED_BACK][:10]}"
            made = datetime.fromtimestamp(version.creation_timestamp / 1000, UTC)
            figures = (version.tags.get(f"candidate_{name}", "").split(" ")[0] for name in ("accuracy", "log_loss"))
            rows.append(
                (version_name(version), version.tags.get(registry.DECISION, ""), *figures, f"{made:%Y-%m-%d}", state)
            )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _find(client: mlflow.MlflowClient, number: str) -> ModelVersion:
    try:
        return client.get_model_version(NAME, number)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            raise StageError(f"{NAME}/{number}: not found; `catsdogs restore --list` shows what there is") from error
        raise


def _previous(client: mlflow.MlflowClient, champion: ModelVersion) -> ModelVersion:
    """The champion before this one, of those that were not rolled back themselves.

    Where one is no longer in the registry, nothing says which came before it: then it is the last that began to serve.
    """
    there = {registry.number(version): version for version in registry.versions(client)}
    seen, version = {registry.number(champion)}, champion
    while (number := version.tags.get(registry.PREVIOUS)) and number in there and number not in seen:
        seen.add(number)
        version = there[number]
        if not registry.rolled_back(version):
            return version
    if number and number not in there:
        others = [each for each in there.values() if registry.number(each) not in seen and registry.has_served(each)]
        others = [each for each in others if not registry.rolled_back(each)]
        if others:
            return max(others, key=lambda each: each.tags.get(registry.SERVED, ""))
    raise StageError(f"{version_name(champion)} is the first champion: there is no earlier one to roll back to")


def _checked(version: ModelVersion) -> Files:
    files = registry.download(version)
    for data in files.models.values():
        if reason := refusal(data):
            raise StageError(f"{version_name(version)} must not serve: {reason}")
    return files
