"""Promote: ship the pipeline's model if it beats the one in service; roll back to the one before.

    catsdogs promote --dry-run        # show the comparison and the decision only
    catsdogs promote                  # register it; if it wins, it is champion and in serving/models/
    catsdogs rollback                 # the previous champion serves again

The candidate, ``models/model.onnx`` with ``models/model.int8.onnx`` if it is there, and the registry's champion answer
the same test photos, each with the file that would serve (int8 where there is one). The rule is that of
:func:`training.match.decide`.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import mlflow
import msgspec
import onnx
from mlflow.entities.model_registry import ModelVersion

from shared import contract, exam
from shared.contract import Contract, Precision
from shared.files import write_whole
from training import registry, split, stage, tracking
from training.match import MARGIN, Match, PromotionDecision, decide, play, single_threaded
from training.registry import Files
from training.stage import StageError

SERVED: Final = Path("serving/models")
PIPELINE: Final[dict[Precision, tuple[Path, Path]]] = {
    "fp32": (stage.MODEL, stage.REPORTS / "metrics.json"),
    "int8": (stage.MODEL.with_name("model.int8.onnx"), stage.REPORTS / "metrics.int8.json"),
}


def promote(*, dry_run: bool = False, margin: float = MARGIN) -> None:
    """Register the candidate, and make it champion if it wins.

    Writes happen in this order: the registry's version with its tags; the files, aside, in ``serving/models``; the
    alias; the files' names. So a full disk or a dead server leaves the old champion serving, and a crash between the
    last two is repaired by the next ``promote``, which puts a candidate that is already champion in place again.

    Args:
        dry_run: only print what would happen.
        margin: see :func:`training.match.decide`.

    Raises:
        StageError: no candidate, one that must not serve, or a store that fails.
    """
    candidate = _candidate()
    document = _contract(candidate.answering)
    with tracking.store() as client:
        champion = registry.champion(client)
        version = registry.find_version(client, candidate)
        if champion and version and champion.version == version.version:
            print(f"{registry.version_name(champion)}: champion already")
            if not dry_run:
                with _placed(_named(candidate, registry.version_name(champion))):
                    pass
            return
        decision, match = _judge(candidate, champion, margin)
        rival = registry.version_name(champion) if champion else "none"
        if match:
            print(match.table(rival))
        print(f"{'promote' if decision.promote else 'keep out'}: {decision.reason}")
        if dry_run:
            return
        tags = {"decision": "promoted" if decision.promote else "kept out", "reason": decision.reason, "rival": rival}
        tags |= match.figures() if match else {}
        if version:
            for tag, value in tags.items():
                client.set_model_version_tag(registry.NAME, version.version, tag, value)
        else:
            version = registry.register(client, candidate, document, tags)
        if decision.promote:
            if champion:
                client.set_model_version_tag(registry.NAME, version.version, registry.PREVIOUS, champion.version)
            _ship(client, version, candidate)
        print(
            f"{registry.version_name(version)}: {'champion, in ' + str(SERVED) if decision.promote else 'registered'}"
        )


def rollback() -> None:
    """Make the previous champion the champion again, and restore its files.

    Raises:
        StageError: there is none, its files must not serve, or the store fails.
    """
    with tracking.store() as client:
        champion = registry.champion(client)
        if champion is None:
            raise StageError("there is no champion to roll back from; `catsdogs promote` makes one")
        number = champion.tags.get(registry.PREVIOUS)
        if number is None:
            raise StageError(
                f"{registry.version_name(champion)} is the first champion: there is no earlier one to roll back to"
            )
        previous = client.get_model_version(registry.NAME, number)
        files = registry.download(previous)
        for data in files.models.values():
            if reason := _refusal(data):
                raise StageError(f"{registry.version_name(previous)} must not serve: {reason}")
        now = datetime.now(UTC).isoformat(timespec="seconds")
        client.set_model_version_tag(registry.NAME, champion.version, "rolled_back", now)
        _ship(client, previous, files)
    print(
        f"{registry.version_name(previous)}: champion again, in {SERVED}; "
        f"{registry.version_name(champion)} is kept in the registry"
    )


def _candidate() -> Files:
    """Read what the pipeline made, and check that it may serve."""
    models, reports = {}, {}
    for precision, (model, report) in PIPELINE.items():
        if precision != "fp32" and not model.exists():
            continue
        for path in (model, report):
            if not path.exists():
                raise StageError(f"{path}: not found; run `catsdogs evaluate` first")
        models[precision], reports[precision] = model.read_bytes(), report.read_bytes()
        if reason := _refusal(models[precision]):
            raise StageError(f"{model} must not serve: {reason}")
    documents = {precision: _contract(data) for precision, data in models.items()}
    for precision, document in documents.items():
        path = PIPELINE[precision][0]
        if document.precision != precision:
            raise StageError(f"{path}: its contract says {document.precision}")
        if document.provenance.mlflow_run_id != documents["fp32"].provenance.mlflow_run_id:
            raise StageError(f"{path} and {stage.MODEL} come from different training runs; run `dvc repro`")
        if document.provenance.split_digest != split.split_digest(split.read(stage.SPLIT)):
            raise StageError(f"{path} was made from another split than {stage.SPLIT}; run `dvc repro`")
    return Files(models, reports)


def _contract(data: bytes) -> Contract:
    entries = onnx.load_model_from_string(data).metadata_props
    return contract.loads({entry.key: entry.value for entry in entries})


def _refusal(data: bytes) -> str | None:
    """Why a service would refuse the file; None if it passes its exam."""
    try:
        failures = exam.sit(_contract(data).exam, single_threaded(data))
    except contract.ContractError as error:
        return str(error)
    # For a file that is not a model protobuf and onnxruntime raise their own classes, RuntimeError and ValueError.
    except Exception as error:
        return f"it does not run ({(str(error) or type(error).__name__).splitlines()[0]})"
    return f"it fails its exam: {'; '.join(failures)}" if failures else None


def _judge(candidate: Files, champion: ModelVersion | None, margin: float) -> tuple[PromotionDecision, Match | None]:
    if champion is None:
        return PromotionDecision(True, "there is no champion yet"), None
    files = registry.download(champion)
    if reason := _refusal(files.answering):
        return PromotionDecision(True, f"the champion can no longer serve: {reason}"), None
    match = play(files.answering, candidate.answering, stage.PREPARED / "test")
    return decide(match, margin), match


def _ship(client: mlflow.MlflowClient, version: ModelVersion, files: Files) -> None:
    with _placed(_named(files, registry.version_name(version))):
        client.set_registered_model_alias(registry.NAME, registry.CHAMPION, version.version)


def _named(files: Files, name: str) -> dict[str, bytes]:
    """The files as they are served: each names its version in the registry."""
    named = {}
    for file, data in files.by_name().items():
        if file.endswith(".json"):
            report = json.loads(data) | {"registry": name}
            named[file] = (json.dumps(report, indent=2, ensure_ascii=False) + "\n").encode()
            continue
        model = onnx.load_model_from_string(data)
        document = _contract(data)
        provenance = msgspec.structs.replace(document.provenance, registry=name)
        text = contract.dumps(msgspec.structs.replace(document, provenance=provenance))
        onnx.helper.set_model_props(model, {contract.METADATA_KEY: text})
        named[file] = model.SerializeToString()
    return named


@contextmanager
def _placed(files: dict[str, bytes]) -> Iterator[None]:
    """Write the files aside, run the block, and rename them into ``serving/models`` only if it succeeds.

    What needs disk space or may fail comes before the block; after it there are only renames. A precision that the new
    version does not have is removed last.
    """
    asides = {SERVED / f".{name}.partial": SERVED / name for name in files}
    try:
        for aside, place in asides.items():
            write_whole(aside, files[place.name])
        yield
        for aside, place in asides.items():
            aside.replace(place)
        for place in SERVED.glob(f"{registry.NAME}.*"):
            if place.name not in files:
                place.unlink()
    finally:
        for aside in asides:
            aside.unlink(missing_ok=True)
