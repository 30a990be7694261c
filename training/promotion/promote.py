"""Promote: ship the pipeline's model if it beats the one in service.

    catsdogs promote --dry-run        # show the comparison and the decision only
    catsdogs promote                  # register it; if it wins, it is champion and in serving/models/
    catsdogs promote --shadow journal # unless it is worse in production, by the feedback in a service's journal

The candidate, ``models/model.onnx`` with ``models/model.int8.onnx`` if it is there, the files in ``serving/models`` and
those of every version that has served answer the same test photos, each with the file that would serve (int8 where
there is one). The rule is that of :func:`training.promotion.decision.decide`.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import mlflow

from shared.contract import ContractError, Precision
from training import ood, split, stage, tracking
from training.photographs import Photographs
from training.promotion import registry, shadow
from training.promotion.decision import PromotionDecision, decide, faults_of, level_of, worse_than_recorded
from training.promotion.files import PRECISIONS, Files, raw_contract, read_contract, refusal
from training.promotion.match import Match, match, play
from training.promotion.registry import version_name
from training.promotion.served import CHANGE, SERVED, Champion, champion_of, exclusive, finish, serve
from training.stage import StageError

PIPELINE: Final[dict[Precision, tuple[Path, Path]]] = {
    "fp32": (stage.MODEL, stage.REPORTS / "metrics.json"),
    "int8": (stage.MODEL_INT8, stage.REPORTS / "metrics.int8.json"),
}
CANDIDATE: Final = "candidate"
FALLBACK: Final = "candidate's fp32"


@dataclass(frozen=True)
class Judged:
    """A decision, and the comparison that it rests on."""

    decision: PromotionDecision
    match: Match | None
    tags: dict[str, str]


def promote(
    sources: Iterable[str], *, dry_run: bool = False, again: bool = False, shadowed: Path | None = None
) -> None:
    """Register the candidate, and make it champion if it wins.

    Args:
        sources: of photos of other things, as in ``export.others``; not compared where there are none.
        dry_run: only print what would happen.
        again: also promote a model that was rolled back.
        shadowed: the journal of a service whose challenger the candidate is.

    Raises:
        StageError: no candidate, one that must not serve, or a store that fails.
    """
    candidate = _candidate()
    with tracking.store() as client, exclusive():
        if dry_run and CHANGE.exists():
            raise StageError(f"a change was interrupted; the next command without --dry-run finishes it ({CHANGE})")
        finish(client)
        champion = champion_of(client, dry_run=dry_run)
        version = registry.find_version(client, candidate)
        if champion and champion.files.digests == candidate.digests:
            print(f"{champion.name}: champion already")
            if champion.version and not dry_run:
                serve(client, champion.version, candidate, {})
            return
        if not again and (rolled_back := _rolled_back(client, candidate)):
            print(f"keep out: {rolled_back} was rolled back; --again lets it try once more")
            return
        judged = _weighed(_judge(client, candidate, champion, sources), shadowed, candidate, champion)
        if judged.match:
            print(judged.match.table())
        print(f"{'promote' if judged.decision.promote else 'keep out'}: {judged.decision.reason}")
        if dry_run:
            return
        tags = judged.tags | {registry.DECISION: "kept out"}
        if version:
            registry.tag(client, registry.number(version), tags)
        else:
            version = registry.register(client, candidate, tags)
        if judged.decision.promote:
            won = {registry.DECISION: "promoted"}
            if champion and champion.version:
                won[registry.PREVIOUS] = registry.number(champion.version)
            serve(client, version, candidate, {registry.number(version): won})
        print(f"{version_name(version)}: {'champion, in ' + str(SERVED) if judged.decision.promote else 'registered'}")


def _weighed(judged: Judged, journal: Path | None, candidate: Files, champion: Champion | None) -> Judged:
    """The decision in the light of what both answered in production."""
    if journal is None or champion is None:
        return judged
    seen = shadow.read(journal, champion.files, candidate)
    print(seen.describe())
    decision = seen.weigh(judged.decision)
    return replace(judged, decision=decision, tags=judged.tags | seen.tags() | {"reason": decision.reason})


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
        if reason := refusal(models[precision]):
            raise StageError(f"{model} must not serve: {reason}")
    candidate = Files(models, reports)
    _check(candidate)
    return candidate.named(None)


def _check(candidate: Files) -> None:
    """Raise a StageError if the files do not belong together."""
    documents = {precision: read_contract(data) for precision, data in candidate.models.items()}
    for precision, document in documents.items():
        path, report = PIPELINE[precision]
        if (about := json.loads(candidate.reports[precision]).get("version")) != document.version:
            raise StageError(f"{report} is about {about}, and {path} is {document.version}; run `dvc repro`")
        if document.precision != precision:
            raise StageError(f"{path}: its contract says {document.precision}")
        if document.provenance.mlflow_run_id != documents["fp32"].provenance.mlflow_run_id:
            raise StageError(f"{path} and {stage.MODEL} come from different training runs; run `dvc repro`")
        if document.provenance.split_digest != split.split_digest(split.read(stage.SPLIT)):
            raise StageError(f"{path} was made from another split than {stage.SPLIT}; run `dvc repro`")


def _rolled_back(client: mlflow.MlflowClient, candidate: Files) -> str | None:
    """Name of a version that was rolled back and is this model, or this network with another contract."""
    for version in registry.versions(client):
        same = version.tags.get(registry.NETWORK) == candidate.network or registry.holds(version, candidate)
        if same and registry.rolled_back(version):
            return version_name(version)
    return None


def _judge(client: mlflow.MlflowClient, candidate: Files, champion: Champion | None, sources: Iterable[str]) -> Judged:
    rivals: dict[str, Files] = {}
    outdated = None
    if champion:
        try:
            read_contract(champion.files.answering)
            rivals[champion.name] = _runnable(champion.name, champion.files)
        except ContractError as error:
            print(f"{champion.name} can no longer serve: {error}")
            outdated = champion
    rivals |= _earlier(client, champion, candidate)
    models = {name: files.answering for name, files in rivals.items()} | {CANDIDATE: candidate.answering}
    if "int8" in candidate.models:
        models[FALLBACK] = candidate.models["fp32"]
    photos = Photographs("test")
    groups = ood.to_measure(ood.read(sources)).values()
    others = [group[index] for group in groups for index in range(len(group))]
    sides = {side: some for side in split.FROM_PRODUCTION if len(some := Photographs(side))}
    answers = play(models, photos, others, sides)
    ours = candidate, answers[CANDIDATE]
    matches = {name: match(name, (files, answers[name]), ours) for name, files in rivals.items()}
    faults = [
        f"{name}: {fault}"
        for name in (CANDIDATE, FALLBACK)
        if name in models
        for fault in faults_of(answers[name], read_contract(models[name]).exam)
    ]
    if outdated:
        faults += worse_than_recorded(answers[CANDIDATE], raw_contract(outdated.files.answering).get("test"))
    against = matches.pop(champion.name, None) if champion else None
    digests = {registry.TEST_SIDE: _digest(photos)}
    digests |= {f"{registry.TEST_SIDE}_{side}": _digest(some) for side, some in sides.items()}
    attempt = _attempt(client, candidate, digests)
    level = level_of(attempt, len(sides))
    earlier = [other.without_costs() for other in matches.values()]
    decision = decide(faults, against, earlier, level)
    tags = {
        "reason": decision.reason,
        "rival": champion.name if champion else "none",
        "compared_with": ", ".join(rivals) or "none",
        "test_photos": str(len(answers[CANDIDATE].right)),
        "candidate_accuracy": f"{answers[CANDIDATE].right.mean():.6g}",
        "candidate_log_loss": f"{answers[CANDIDATE].losses.mean():.6g}",
    }
    if against:
        tags |= digests | {registry.ATTEMPT: str(attempt), "level": f"{level:.6g}"}
        for figure in against.figures:
            tags |= figure.tags()
    return Judged(decision, against, tags)


def _runnable(name: str, files: Files) -> Files:
    """The files from the one on that a service would take here: fp32 where int8 fails its exam."""
    reasons = []
    for precision in PRECISIONS:
        if precision in files.models:
            reason = refusal(files.models[precision])
            if reason is None:
                return files
            models, reports = (
                {other: data for other, data in each.items() if other != precision}
                for each in (files.models, files.reports)
            )
            files = Files(models, reports)
            reasons.append(reason)
    raise StageError(f"{name} cannot be compared, as it cannot serve here: {'; '.join(reasons)}")


def _earlier(client: mlflow.MlflowClient, champion: Champion | None, candidate: Files) -> dict[str, Files]:
    """Files of the versions that have served, and would today, by name."""
    earlier = {}
    for version in registry.versions(client):
        skipped = registry.rolled_back(version) or registry.holds(version, candidate)
        if not registry.has_served(version) or skipped or (champion and registry.holds(version, champion.files)):
            continue
        files = registry.download(version)
        try:
            read_contract(files.answering)
            earlier[version_name(version)] = _runnable(version_name(version), files)
        except (ContractError, StageError) as error:
            print(f"{version_name(version)}: not compared, {error}")
    return earlier


def _digest(photos: Photographs) -> str:
    """SHA-256 of a side: which photos are in it, with which labels."""
    names = "".join(f"{label}/{id_}\n" for label, id_ in sorted(zip(photos.given, photos.ids, strict=True)))
    return hashlib.sha256(names.encode()).hexdigest()


def _attempt(client: mlflow.MlflowClient, candidate: Files, sides: dict[str, str]) -> int:
    """Which attempt on any of these sides the candidate is; one that is judged again keeps its number."""
    tried = [version for version in registry.versions(client) if sides.items() & version.tags.items()]
    for version in tried:
        if registry.holds(version, candidate):
            # Tags are set one by one, so a killed run may have left it out.
            return int(version.tags.get(registry.ATTEMPT, len(tried)))
    return len(tried) + 1
