"""Train: fit the network on the training side, once or several times from one start, and average the best.

    catsdogs train                    # resumes an interrupted run with the same parameters, data, labels and code
    catsdogs train --restart          # starts over

Writes ``models/trained/``: ``weights.pt``, ``trained.json`` (what later stages read), ``history.csv``,
``curves.png``, and in ``members/`` the weights of the start and of each member, for ``evaluate`` to compare.
"""

import csv
import hashlib
import io
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import mlflow
import msgspec
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from shared.files import write_json, write_whole
from shared.intervals import wilson
from shared.spec import DIGEST
from training import labels, models, pictures, plots, tracking
from training.augmentation import augmentation, degrade
from training.fit import Fit, Weights, greedy_soup
from training.machine import Machine, choose_machine
from training.models import Classifier
from training.params import FIRST, Train
from training.pictures import Pictures, evenly_spaced
from training.stage import StageError, progress, whole_directory

PROBE_FOLDS: Final = 5
# What decides the weights; not the progress bars, plots and records of a run.
CODE: Final = [
    Path(__file__).with_name(f"{name}.py") for name in ("train", "fit", "models", "augmentation", "pictures", "labels")
]
AT_ONCE: Final = 32  # batch size for inference; with 64, validation and not training was the peak of memory


@dataclass(frozen=True)
class Member:
    """One run of the soup: its name, its parameters and where its checkpoint lies."""

    name: str
    recipe: Train
    checkpoint: Path


def train(
    prepared: Path, params: Train, out: Path, checkpoints: Path, split_digest: str, *, restart: bool = False
) -> None:
    """Train on ``prepared`` and write the best weights to ``out``.

    Args:
        prepared: the folder that ``prepare`` filled.
        params: the section ``train`` of params.yaml.
        out: the folder to write.
        checkpoints: folder for checkpoints to resume from.
        split_digest: digest of the split, kept with the result and part of what identifies a checkpoint.
        restart: start over instead of resuming.

    Raises:
        StageError: no prepared pictures, an unknown model, weights that cannot be downloaded, or labels unrelated to
            the pictures.
    """
    machine = choose_machine()
    val_set = Pictures(prepared / "val", decided=labels.decisions())
    recipes = [(FIRST, msgspec.structs.replace(params, soup=()))]
    recipes += [(variation.name, params.varied(variation)) for variation in params.soup]
    fixed = {"data": split_digest + DIGEST, "labels": _digest(labels.DECISIONS), "code": _digest(*CODE)}
    members = [Member(name, recipe, checkpoints / f"{_key(recipe, fixed)}.pt") for name, recipe in recipes]
    start_file = checkpoints / f"{members[0].checkpoint.stem}.start.pt"
    saved = [start_file, *(member.checkpoint for member in members)]
    if restart:
        for file in saved:
            file.unlink(missing_ok=True)

    made_of = fixed | {"parameters": _key(members[0].recipe, {})}
    if not start_file.exists() and not restart:
        for other in checkpoints.glob("*.start.pt"):
            earlier = torch.load(other, weights_only=True).get("made_of", {})
            changed = [what for what, digest in made_of.items() if earlier.get(what) != digest]
            print(f"starting anew: the interrupted run of {other} had other {', '.join(changed)}")
    start = start_weights(start_file, params, Pictures(prepared / "train"), machine)
    with tracking.run(start["mlflow_run_id"], params.model) as run_id:
        if not start_file.exists():
            mlflow.log_params(tracking.flat(params) | {"split_digest": split_digest})
            tracking.log_dataset(prepared, split_digest)
            mlflow.set_tags(tracking.versions() | machine.tags | {"git_commit": tracking.git_commit()})
            write_whole(start_file, _bytes(start | {"mlflow_run_id": run_id, "made_of": made_of}))
        fits = []
        for number, member in enumerate(members, 1):
            print(f"member {number} of {len(members)}: {member.name}")
            fits.append(_fit(member, start["weights"], prepared, val_set, machine))

        model = build_model(members[0].recipe, start["weights"], machine)
        chosen, weights = _average([fit.best for fit in fits], model, prepared, machine)
        print(f"kept: {' + '.join(members[number].name for number in chosen)}, averaged")
        model.load_state_dict(weights)
        logits, truth = predict_logits(model, val_set, machine, "validating the average")
        lines = [
            {"name": member.name, "kept": number in chosen, "mlflow_run_id": fit.mlflow_run_id, **asdict(fit.best_line)}
            for number, (member, fit) in enumerate(zip(members, fits, strict=True))
        ]
        trained: dict[str, Any] = {
            "model": params.model,
            "val_loss": float(nn.functional.cross_entropy(logits, truth)),
            "val_accuracy": float((logits.argmax(1) == truth).double().mean()),
            "members": lines,
            "split_digest": split_digest,
            "mlflow_run_id": run_id,
        }
        _write(out, trained, weights, [start["weights"], *(fit.best for fit in fits)], _histories(members, fits))
        mlflow.log_metrics({"val_loss": trained["val_loss"], "val_accuracy": trained["val_accuracy"]})
        mlflow.log_artifact(str(out / "curves.png"))
        confusion = plots.confusion_matrix(truth.numpy(), logits.argmax(1).numpy())
        mlflow.log_figure(confusion, "validation_confusion.png")
    for file in saved:
        file.unlink(missing_ok=True)


def read_trained(folder: Path) -> dict[str, Any]:
    """Read the ``trained.json`` that :func:`train` wrote to ``folder``.

    Raises:
        StageError: it has not run.
    """
    try:
        document: dict[str, Any] = json.loads((folder / "trained.json").read_text())
    except OSError as error:
        raise StageError(f"{folder}: {error.strerror}; run `catsdogs train` first") from error
    return document


def _key(recipe: Train, fixed: dict[str, str]) -> str:
    """Name of a run's checkpoint: the same for the same parameters, data, labels and code, and for no others."""
    return hashlib.sha256(msgspec.json.encode((recipe, fixed))).hexdigest()[:16]


def _digest(*files: Path) -> str:
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _bytes(content: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def start_weights(saved: Path, params: Train, train_set: Pictures, machine: Machine) -> dict[str, Any]:
    """Weights that every member starts from, and the MLflow run; those of an interrupted run if there is one."""
    if saved.exists():
        content: dict[str, Any] = torch.load(saved, weights_only=True, map_location="cpu")
        print(f"resumed: start weights and MLflow run from {saved}")
        return content
    torch.manual_seed(params.seed)
    model = models.build(params.model, pretrained=params.pretrained)
    print(f"model: {params.model}, {sum(p.numel() for p in model.parameters()) / 1e6:.2f} million parameters")
    model.to(memory_format=torch.channels_last).to(machine.device)
    if params.probe_pictures and model.pretrained:
        accuracy = _probe(model, train_set, params, machine)
        print(f"head: starts from a linear probe, {accuracy:.2%} right on held-out pictures")
    return {"weights": {name: tensor.cpu() for name, tensor in model.state_dict().items()}, "mlflow_run_id": None}


def build_model(recipe: Train, weights: Weights, machine: Machine) -> Classifier:
    """The network that ``recipe`` names, with these weights, on the machine's device."""
    torch.manual_seed(recipe.seed)
    model = models.build(recipe.model, pretrained=recipe.pretrained)
    model.load_state_dict(weights)
    return model.to(memory_format=torch.channels_last).to(machine.device)


def _fit(member: Member, start: Weights, prepared: Path, val_set: Pictures, machine: Machine) -> Fit:
    """Run the remaining epochs of a member; validate, log and save each."""
    recipe = member.recipe
    decided = labels.decisions() if recipe.audited else {}
    model = build_model(recipe, start, machine)
    print(f"frozen: {model.freeze(recipe.frozen_blocks)}")
    train_set = Pictures(prepared / "train", decided=decided)
    print(f"pictures: {len(train_set):,} to train on, {len(val_set):,} to validate on")
    fit = Fit(model, recipe, steps=recipe.epochs * -(-len(train_set) // recipe.batch_size))
    if member.checkpoint.exists():
        fit.load(member.checkpoint)
        print(f"resumed: epoch {len(fit.history) + 1}, batch {fit.batch}, from {member.checkpoint}")
    with tracking.run(fit.mlflow_run_id, member.name, nested=True) as fit.mlflow_run_id:
        mlflow.log_params(tracking.flat(recipe))
        for epoch in range(len(fit.history), recipe.epochs):
            transform = augmentation(recipe.augmentation)
            augmented = Pictures(prepared / "train", transform, pictures.epoch_seed(recipe.seed, epoch), decided)
            _run_epoch(fit, augmented, epoch, recipe, machine, member.checkpoint)
            logits, truth = predict_logits(fit.averaged, val_set, machine, "validating")
            line = fit.end_epoch(logits, truth)
            fit.save(member.checkpoint)
            rates = {"lr": fit.scheduler.get_last_lr()[0], "head_lr": fit.scheduler.get_last_lr()[-1]}
            mlflow.log_metrics(
                {name: value for name, value in asdict(line).items() if name != "epoch"} | rates, line.epoch
            )
            print(
                f"epoch {line.epoch}: train loss {line.train_loss:.4f}, accuracy {line.train_accuracy:.2%}; "
                f"validation loss {line.val_loss:.4f}, accuracy {line.val_accuracy:.2%}; {line.seconds:.0f} s"
            )
    if _guesses(fit.best_line.val_accuracy, len(val_set)):
        print(
            f"warning: {fit.best_line.val_accuracy:.0%} right on {len(val_set):,} validation pictures is no better "
            "than guessing: it learned too little, or the labels are mixed up; `catsdogs suspects` checks them"
        )
    return fit


def _guesses(accuracy: float, pictures: int) -> bool:
    """Whether guessing could reach this accuracy, as it does when half of the labels are swapped."""
    return wilson(round(accuracy * pictures), pictures).low <= 1 / 2


def _average(members: list[Weights], model: Classifier, prepared: Path, machine: Machine) -> tuple[list[int], Weights]:
    """Average the members that help on the validation photos, as they are and degraded.

    Uploads come from other cameras and in other sizes than this collection. Measured, the mean of both log losses:
    0.081, 0.080 and 0.074 for the three members on their own, 0.076 for the two without strong augmentation, 0.069 for
    all; on the photos as they are, 0.0173 for all against 0.0166 for those two.
    """
    if len(members) == 1:
        return [0], members[0]
    decided = labels.decisions()
    sides = [Pictures(prepared / "val", transform, decided=decided) for transform in (None, degrade)]

    def loss(weights: Weights) -> float:
        model.load_state_dict(weights)
        found = (predict_logits(model, side, machine, "validating an average") for side in sides)
        return sum(float(nn.functional.cross_entropy(logits, truth)) for logits, truth in found) / len(sides)

    return greedy_soup(members, loss)


def _run_epoch(fit: Fit, augmented: Pictures, epoch: int, recipe: Train, machine: Machine, checkpoint: Path) -> None:
    """Train on the batches of the epoch that ``fit`` has not seen yet, with a checkpoint every few minutes."""
    batches = pictures.shuffled(len(augmented), recipe.batch_size, recipe.seed, epoch)[fit.batch :]
    loader = pictures.loader(augmented, batches, machine.workers)
    fit.model.train()
    saved = time.monotonic()
    for images, truth in progress(loader, f"epoch {epoch + 1}/{recipe.epochs}", len(batches), " batches"):
        # Dropout depends only on the position in the run, so that a resumed epoch is the same as an uninterrupted one.
        torch.manual_seed(pictures.step_seed(recipe.seed, epoch, fit.batch))
        fit.step(images.to(machine.device), truth.to(machine.device), machine.autocast)
        if time.monotonic() - saved > recipe.checkpoint_minutes * 60:
            fit.save(checkpoint)
            saved = time.monotonic()


def predict_logits(model: Classifier, data: Pictures, machine: Machine, what: str) -> tuple[Tensor, Tensor]:
    """Logits float32 [n, 2] and labels int64 [n] of every picture, in order, on the CPU."""
    model.eval()
    logits, labels = [], []
    batches = pictures.in_order(len(data), AT_ONCE)
    with torch.inference_mode():
        for images, truth in progress(pictures.loader(data, batches, machine.workers), what, len(batches), " batches"):
            logits.append(model(images.to(machine.device)).float().cpu())
            labels.append(truth)
    return torch.cat(logits), torch.cat(labels)


def features(model: Classifier, data: Pictures, count: int, machine: Machine, what: str) -> tuple[Tensor, Tensor]:
    """Pooled features float32 [n, channels] and labels of ``count`` pictures, spread evenly over the data set."""
    chosen = evenly_spaced(len(data), count)
    batches = [chosen[start : start + AT_ONCE] for start in range(0, len(chosen), AT_ONCE)]
    model.eval()
    rows, labels = [], []
    with torch.inference_mode():
        for images, truth in progress(pictures.loader(data, batches, machine.workers), what, len(batches), " batches"):
            rows.append(model.feature_map(images.to(machine.device)).mean((2, 3)).float().cpu())
            labels.append(truth)
    return torch.cat(rows), torch.cat(labels)


def _probe(model: Classifier, data: Pictures, params: Train, machine: Machine) -> float:
    """Put the weights of a logistic regression on frozen features into the head; returns its accuracy out of fold.

    Raises:
        StageError: that accuracy is no better than guessing, as when half of the labels are swapped.
    """
    rows, truth = features(model, data, params.probe_pictures, machine, "probing")
    own = labels.out_of_fold(rows.numpy(), truth.numpy(), PROBE_FOLDS, params.seed)
    accuracy = float((own >= labels.CONTRADICTED).mean())
    if _guesses(accuracy, len(own)):
        raise StageError(
            f"the labels look swapped or mixed up: a probe fitted on the other pictures is right on {accuracy:.0%} of "
            f"{len(own):,}, no better than guessing; check the class folders"
        )
    mean, std = rows.mean(0), rows.std(0).clamp_min(1e-6)
    probe = LogisticRegression(C=0.01, max_iter=1000).fit(((rows - mean) / std).numpy(), truth.numpy())
    # Two logits whose difference is the probe's one: half of its weights each, with opposite signs.
    weight = torch.tensor(probe.coef_[0], dtype=torch.float32) / std
    bias = torch.tensor(probe.intercept_[0], dtype=torch.float32) - (weight * mean).sum()
    with torch.no_grad():
        model.head.weight.copy_(torch.stack([-weight, weight]) / 2)
        model.head.bias.copy_(torch.stack([-bias, bias]) / 2)
    return accuracy


def _histories(members: list[Member], fits: list[Fit]) -> dict[str, list[Any]]:
    return {member.name: fit.history for member, fit in zip(members, fits, strict=True)}


def _write(
    out: Path, trained: dict[str, Any], weights: Weights, members: list[Weights], histories: dict[str, list[Any]]
) -> None:
    text = io.StringIO()
    rows = [{"member": name, **asdict(line)} for name, history in histories.items() for line in history]
    # Counted across the members, so that one axis holds them all.
    writer = csv.DictWriter(text, ["total_epochs", *rows[0]], lineterminator="\n")
    writer.writeheader()
    writer.writerows({"total_epochs": count, **row} for count, row in enumerate(rows, 1))
    with whole_directory(out) as aside:
        # Given a path, torch.save turns a full disk into an uninformative RuntimeError.
        write_whole(aside / "weights.pt", _bytes({name: tensor.cpu() for name, tensor in weights.items()}))
        for number, member in enumerate(members):
            cpu = {name: tensor.cpu() for name, tensor in member.items()}
            write_whole(aside / "members" / f"{number}.pt", _bytes(cpu))
        write_json(aside / "trained.json", trained)
        write_whole(aside / "history.csv", text.getvalue())
        plots.learning_curves(histories).savefig(aside / "curves.png")
