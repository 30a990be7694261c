"""Train: fit the network on the training side, keep the best epoch by validation log loss.

    catsdogs train                    # goes on where an interrupted run of the same parameters and data stopped
    catsdogs train --restart          # forgets an interrupted run

Writes ``models/trained/``: ``weights.pt``, ``trained.json`` (what the later stages need to know), ``history.csv`` and
``curves.png``.
"""

import csv
import hashlib
import io
import time
from dataclasses import asdict
from pathlib import Path

import mlflow
import msgspec
import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from training import models, pictures, plots, tracking
from training.augmentation import augmentation
from training.fit import Fit, average
from training.machine import Machine, choose_machine
from training.models import Classifier
from training.params import Train, Variation
from training.pictures import Pictures
from training.stage import progress, whole_directory, write_json, write_whole


def train(
    prepared: Path, params: Train, out: Path, checkpoints: Path, split_digest: str, *, restart: bool = False
) -> None:
    """Train on ``prepared`` and write the best weights to ``out``.

    Args:
        prepared: the folder that ``prepare`` filled.
        params: the section ``train`` of params.yaml.
        out: the folder to write.
        checkpoints: folder for what an interrupted run goes on from.
        split_digest: digest of the split, kept with the result and part of what identifies a checkpoint.
        restart: forget an interrupted run of the same parameters and data.

    Raises:
        StageError: no prepared pictures, an unknown model, or weights that cannot be had.
    """
    machine = choose_machine()
    train_set, val_set = Pictures(prepared / "train"), Pictures(prepared / "val")
    print(f"pictures: {len(train_set)} to train on, {len(val_set)} to validate on")

    recipes = [msgspec.structs.replace(params, soup=()), *(_varied(params, variation) for variation in params.soup)]
    saved = [checkpoints / f"{_identity(recipe, split_digest)}.pt" for recipe in recipes]
    if restart:
        for checkpoint in saved:
            checkpoint.unlink(missing_ok=True)
    first = _begin(recipes[0], saved[0], train_set, machine)
    with tracking.run(first.mlflow_run_id, params.model) as first.mlflow_run_id:
        if not first.history and not first.batch:
            mlflow.log_params(tracking.flat(params) | {"train_pictures": len(train_set), "split_digest": split_digest})
            mlflow.set_tag("git_commit", tracking.git_commit())
        _run(first, prepared / "train", val_set, recipes[0], machine, saved[0])
        members = [first]
        for number, (recipe, checkpoint) in enumerate(zip(recipes[1:], saved[1:], strict=True), 2):
            print(f"soup: member {number} of {len(recipes)}")
            member = _begin(recipe, checkpoint, train_set, machine)
            with tracking.run(member.mlflow_run_id, f"member {number}", nested=True) as member.mlflow_run_id:
                mlflow.log_params(tracking.flat(recipe))
                _run(member, prepared / "train", val_set, recipe, machine, checkpoint)
            members.append(member)

        best = min(members, key=lambda member: member.best_line.val_loss).best
        mixed = average([member.best for member in members])
        chosen, logits, labels = min(
            ((weights, *_validated(first.averaged, weights, val_set, machine)) for weights in (best, mixed)),
            key=lambda candidate: float(nn.functional.cross_entropy(candidate[1], candidate[2])),
        )
        _write(out, members, chosen, params.model, split_digest, (logits, labels))
        mlflow.log_artifact(str(out / "curves.png"))
        confusion = plots.confusion_matrix(labels.numpy(), logits.argmax(1).numpy())
        mlflow.log_figure(confusion, "validation_confusion.png")
    for checkpoint in saved:
        checkpoint.unlink(missing_ok=True)


def _varied(params: Train, variation: Variation) -> Train:
    changes = {name: value for name, value in msgspec.structs.asdict(variation).items() if value is not None}
    crop_scale = changes.pop("crop_scale", params.augmentation.crop_scale)
    augmentation = msgspec.structs.replace(params.augmentation, crop_scale=crop_scale)
    return msgspec.structs.replace(params, **changes, augmentation=augmentation, soup=())


def _identity(recipe: Train, split_digest: str) -> str:
    """Name of a run's checkpoint: the same for the same parameters and data, and for no others."""
    return hashlib.sha256(msgspec.json.encode(recipe) + split_digest.encode()).hexdigest()[:16]


def _begin(recipe: Train, checkpoint: Path, train_set: Pictures, machine: Machine) -> Fit:
    """Start a run, or go on with the one that left ``checkpoint``."""
    torch.manual_seed(recipe.seed)
    model = models.build(recipe.model, pretrained=recipe.pretrained)
    print(f"model: {recipe.model}, {sum(p.numel() for p in model.parameters()) / 1e6:.2f} million parameters")
    print(f"frozen: {model.freeze(recipe.frozen_blocks)}")
    model.to(memory_format=torch.channels_last).to(machine.device)
    if recipe.probe_pictures and model.pretrained and not checkpoint.exists():
        accuracy = _probe(model, train_set, recipe, machine)
        print(f"head: starts from a linear probe, {accuracy:.2%} right on the pictures it was fitted to")
    fit = Fit(model, recipe, steps=recipe.epochs * -(-len(train_set) // recipe.batch_size))
    if checkpoint.exists():
        fit.load(checkpoint)
        print(f"resumed: epoch {len(fit.history) + 1} from batch {fit.batch}, out of {checkpoint}")
    return fit


def _run(fit: Fit, folder: Path, val_set: Pictures, recipe: Train, machine: Machine, checkpoint: Path) -> None:
    """Run the epochs that are left, each validated, logged and saved."""
    for epoch in range(len(fit.history), recipe.epochs):
        _run_epoch(fit, folder, epoch, recipe, machine, checkpoint)
        logits, labels = predict(fit.averaged, val_set, machine, "validating")
        line = fit.end_epoch(logits, labels)
        fit.save(checkpoint)
        mlflow.log_metrics({name: value for name, value in asdict(line).items() if name != "epoch"}, step=line.epoch)
        print(
            f"epoch {line.epoch}: train loss {line.train_loss:.4f}, accuracy {line.train_accuracy:.2%}; "
            f"validation loss {line.val_loss:.4f}, accuracy {line.val_accuracy:.2%}; {line.seconds:.0f} s"
        )


def _validated(
    model: Classifier, weights: dict[str, Tensor], val_set: Pictures, machine: Machine
) -> tuple[Tensor, Tensor]:
    model.load_state_dict(weights)
    return predict(model, val_set, machine, "validating the best weights")


def _run_epoch(fit: Fit, folder: Path, epoch: int, params: Train, machine: Machine, checkpoint: Path) -> None:
    """Learn from every batch of the epoch that ``fit`` has not seen yet, with a checkpoint every few minutes."""
    augmented = Pictures(folder, augmentation(params.augmentation), pictures.epoch_seed(params.seed, epoch))
    batches = pictures.shuffled(len(augmented), params.batch_size, params.seed, epoch)[fit.batch :]
    loader = pictures.loader(augmented, batches, machine.workers)
    fit.model.train()
    saved = time.monotonic()
    for images, labels in progress(loader, f"epoch {epoch + 1}/{params.epochs}", len(batches), " batches"):
        fit.step(images.to(machine.device), labels.to(machine.device), machine.autocast)
        if time.monotonic() - saved > params.checkpoint_minutes * 60:
            fit.save(checkpoint)
            saved = time.monotonic()


def predict(model: Classifier, data: Pictures, machine: Machine, what: str) -> tuple[Tensor, Tensor]:
    """Logits float32 [n, 2] and labels int64 [n] of every picture, in order, on the CPU."""
    model.eval()
    logits, labels = [], []
    batches = pictures.in_order(len(data), 64)
    with torch.inference_mode():
        for images, truth in progress(pictures.loader(data, batches, machine.workers), what, len(batches), " batches"):
            logits.append(model(images.to(machine.device)).float().cpu())
            labels.append(truth)
    return torch.cat(logits), torch.cat(labels)


def features(model: Classifier, data: Pictures, count: int, machine: Machine, what: str) -> tuple[Tensor, Tensor]:
    """Pooled features float32 [n, channels] and labels of ``count`` pictures, spread evenly over the data set."""
    chosen = np.linspace(0, len(data) - 1, min(count, len(data))).astype(int).tolist()
    batches = [chosen[start : start + 64] for start in range(0, len(chosen), 64)]
    model.eval()
    rows, labels = [], []
    with torch.inference_mode():
        for images, truth in progress(pictures.loader(data, batches, machine.workers), what, len(batches), " batches"):
            rows.append(model.feature_map(images.to(machine.device)).mean((2, 3)).float().cpu())
            labels.append(truth)
    return torch.cat(rows), torch.cat(labels)


def _probe(model: Classifier, data: Pictures, params: Train, machine: Machine) -> float:
    """Put the weights of a logistic regression on frozen features into the head; returns its accuracy on them."""
    rows, labels = features(model, data, params.probe_pictures, machine, "probing")
    mean, std = rows.mean(0), rows.std(0).clamp_min(1e-6)
    probe = LogisticRegression(C=0.01, max_iter=1000).fit(((rows - mean) / std).numpy(), labels.numpy())
    # Two logits whose difference is the probe's one: half of its weights each, with opposite signs.
    weight = torch.tensor(probe.coef_[0], dtype=torch.float32) / std
    bias = torch.tensor(probe.intercept_[0], dtype=torch.float32) - (weight * mean).sum()
    with torch.no_grad():
        model.head.weight.copy_(torch.stack([-weight, weight]) / 2)
        model.head.bias.copy_(torch.stack([-bias, bias]) / 2)
    return float(((rows @ weight + bias > 0).long() == labels).double().mean())


def _write(
    out: Path,
    members: list[Fit],
    weights: dict[str, Tensor],
    model: str,
    split_digest: str,
    validation: tuple[Tensor, Tensor],
) -> None:
    logits, labels = validation
    history = members[0].history
    with whole_directory(out) as aside:
        torch.save({name: tensor.cpu() for name, tensor in weights.items()}, aside / "weights.pt")
        write_json(
            aside / "trained.json",
            {
                "model": model,
                "val_loss": float(nn.functional.cross_entropy(logits, labels)),
                "val_accuracy": float((logits.argmax(1) == labels).double().mean()),
                "members": [asdict(member.best_line) for member in members],
                "split_digest": split_digest,
                "mlflow_run_id": members[0].mlflow_run_id,
            },
        )
        text = io.StringIO()
        writer = csv.DictWriter(text, list(asdict(history[0])), lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(line) for line in history)
        write_whole(aside / "history.csv", text.getvalue())
        plots.curves(history).savefig(aside / "curves.png")
