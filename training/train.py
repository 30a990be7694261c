"""Train: fit the network on the training side, keep the best epoch by validation log loss.

    catsdogs train                    # goes on where an interrupted run of the same parameters and data stopped
    catsdogs train --restart          # forgets an interrupted run

Writes ``models/trained/``: ``weights.pt``, ``trained.json`` (what the later stages need to know), ``history.csv`` and
``curves.png``.
"""

import csv
import ctypes
import hashlib
import io
import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import mlflow
import msgspec
import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel

from training import models, pictures, plots, tracking
from training.augmentation import augmentation
from training.models import Classifier
from training.params import Train, Variation
from training.pictures import Pictures
from training.stage import progress, whole_directory, write_json, write_whole


@dataclass(frozen=True)
class Epoch:
    """One line of the history; losses are mean cross-entropies in nats."""

    epoch: int
    train_loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: float
    seconds: float


@dataclass(frozen=True)
class Machine:
    """What the run computes with. Each choice is printed with its reason."""

    device: torch.device
    autocast: torch.dtype | None
    workers: int


def choose_machine() -> Machine:
    """Pick device, precision and loader processes, and say why."""
    cores = len(os.sched_getaffinity(0))
    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    print(f"device: {device} ({torch.cuda.get_device_name() if cuda else 'no CUDA device is visible'})")
    bf16 = torch.cuda.is_bf16_supported() if cuda else _cpu_has_bf16()
    print(
        f"precision: {'bfloat16 autocast' if bf16 else 'float32'} (bfloat16 arithmetic {'found' if bf16 else 'absent'})"
    )
    print(f"memory: {_keep_freed_memory()}")
    # Measured on two cores: 39 ms a picture loading in this process, 48 with one loader process beside the network.
    workers = min(8, cores // 2) if cuda or cores > 4 else 0
    print(f"loader processes: {workers} ({cores} cores, {'a GPU' if cuda else 'and the network needs them'})")
    return Machine(device, torch.bfloat16 if bf16 else None, workers)


def _cpu_has_bf16() -> bool:
    # Emulated bfloat16 is slower than float32; only these instruction sets compute it.
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def _keep_freed_memory() -> str:
    """Let glibc's malloc keep what the network frees instead of handing it back and faulting it in again.

    Measured on two cores: 33 → 13 ms a picture forward, 33 → 30 ms with the backward pass; before, up to 90 % of the
    time went to the kernel's page faults.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return "left to the system's malloc (not glibc)"
    m_trim_threshold, m_mmap_max = -1, -4  # from malloc.h
    mallopt(m_mmap_max, 0)
    mallopt(m_trim_threshold, 2**31 - 1)
    return "freed memory is kept for the next batch (glibc's malloc)"


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


def average(members: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Mean of several networks' weights, a "model soup" (Wortsman et al. 2022, https://arxiv.org/abs/2203.05482).

    It works for networks fine-tuned from one start, and is better than each of them at no cost when they answer.
    """
    return {
        name: torch.stack([member[name] for member in members]).mean(0) if tensor.is_floating_point() else tensor
        for name, tensor in members[0].items()
    }


def _varied(params: Train, variation: Variation) -> Train:
    changes = {name: value for name, value in msgspec.structs.asdict(variation).items() if value is not None}
    crop_scale = changes.pop("crop_scale", params.augmentation.crop_scale)
    augmentation = msgspec.structs.replace(params.augmentation, crop_scale=crop_scale)
    return msgspec.structs.replace(params, **changes, augmentation=augmentation, soup=())


def _identity(recipe: Train, split_digest: str) -> str:
    """Name of a run's checkpoint: the same for the same parameters and data, and for no others."""
    return hashlib.sha256(msgspec.json.encode(recipe) + split_digest.encode()).hexdigest()[:16]


def _begin(recipe: Train, checkpoint: Path, train_set: Pictures, machine: Machine) -> "Fit":
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


def _run(fit: "Fit", folder: Path, val_set: Pictures, recipe: Train, machine: Machine, checkpoint: Path) -> None:
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


class Fit:
    """Everything that changes while training, and so everything that a checkpoint holds.

    Args:
        model: the network, on its device; its averaged twin is what is validated and kept.
        params: the section ``train`` of params.yaml.
        steps: batches in the whole run.
    """

    def __init__(self, model: Classifier, params: Train, steps: int) -> None:
        """Make the optimizer, its schedule and the average."""
        self.model = model
        self.optimizer = _optimizer(model, params)
        self.scheduler = LambdaLR(self.optimizer, _warmup_then_cosine(steps))
        self.average = AveragedModel(model, multi_avg_fn=_moving_average(params.weight_average), use_buffers=True)
        self.loss_function = nn.CrossEntropyLoss(label_smoothing=params.label_smoothing)
        self.history: list[Epoch] = []
        self.best: dict[str, Tensor] = {}
        self.mlflow_run_id: str | None = None
        self._begin_epoch()

    @property
    def averaged(self) -> Classifier:
        """The network with the averaged weights."""
        return cast("Classifier", self.average.module)

    def step(self, images: Tensor, labels: Tensor, autocast: torch.dtype | None) -> None:
        """Learn from one batch: uint8 [n, 3, 224, 224] and int64 [n], on the model's device."""
        began = time.monotonic()
        with torch.autocast(images.device.type, autocast, enabled=autocast is not None):
            logits = self.model(images)
            loss = self.loss_function(logits.float(), labels)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.scheduler.step()
        self.average.update_parameters(self.model)
        self.batch += 1
        self.seen += len(labels)
        self.loss += float(loss.detach()) * len(labels)
        self.right += int((logits.argmax(1) == labels).sum())
        self.seconds += time.monotonic() - began

    @property
    def best_line(self) -> Epoch:
        """The epoch whose weights are kept."""
        return min(self.history, key=lambda line: line.val_loss)

    def end_epoch(self, logits: Tensor, labels: Tensor) -> Epoch:
        """Write the epoch into the history, given the validation outputs, and keep its weights if they are the best."""
        line = Epoch(
            epoch=len(self.history) + 1,
            train_loss=self.loss / self.seen,
            train_accuracy=self.right / self.seen,
            val_loss=float(nn.functional.cross_entropy(logits, labels)),
            val_accuracy=float((logits.argmax(1) == labels).double().mean()),
            seconds=self.seconds,
        )
        if all(line.val_loss < earlier.val_loss for earlier in self.history):
            self.best = {name: tensor.detach().clone() for name, tensor in self.averaged.state_dict().items()}
        self.history.append(line)
        self._begin_epoch()
        return line

    def save(self, path: Path) -> None:
        """Write a checkpoint, whole or not at all."""
        content = {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "rng": torch.get_rng_state(),
            "best": self.best,
            "history": [asdict(line) for line in self.history],
            "mlflow_run_id": self.mlflow_run_id,
            "epoch_so_far": [self.batch, self.seen, self.loss, self.right, self.seconds],
        }
        buffer = io.BytesIO()
        torch.save(content, buffer)
        write_whole(path, buffer.getvalue())

    def load(self, path: Path) -> None:
        """Go on from a checkpoint."""
        content = torch.load(path, weights_only=True, map_location="cpu")
        self.model.load_state_dict(content["model"])
        self.average.load_state_dict(content["average"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.scheduler.load_state_dict(content["scheduler"])
        torch.set_rng_state(content["rng"])
        self.best = content["best"]
        self.history = [Epoch(**line) for line in content["history"]]
        self.mlflow_run_id = content["mlflow_run_id"]
        self.batch, self.seen, self.loss, self.right, self.seconds = content["epoch_so_far"]

    def _begin_epoch(self) -> None:
        self.batch, self.seen, self.loss, self.right, self.seconds = 0, 0, 0.0, 0, 0.0


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


def _optimizer(model: Classifier, params: Train) -> torch.optim.AdamW:
    trunk = [parameter for parameter in model.trunk.parameters() if parameter.requires_grad]
    # A network from scratch has nothing to be careful with: its trunk learns as fast as its head.
    lr = params.lr if params.pretrained and model.pretrained else params.head_lr
    groups = [
        {"params": [p for p in trunk if p.ndim > 1], "lr": lr},
        # Norms and biases are not decayed, as usual.
        {"params": [p for p in trunk if p.ndim <= 1], "lr": lr, "weight_decay": 0.0},
        {"params": list(model.head.parameters()), "lr": params.head_lr},
    ]
    return torch.optim.AdamW(groups, weight_decay=params.weight_decay)


def _warmup_then_cosine(steps: int) -> Any:
    warmup = max(1, steps // 20)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + float(np.cos(np.pi * (step - warmup) / max(1, steps - warmup))))

    return factor


def _moving_average(decay: float) -> Any:
    """Exponential moving average whose decay grows with the steps, so that a short run is not stuck at its start."""

    def update(averaged: list[Tensor], current: list[Tensor], count: Tensor | int) -> None:
        keep = min(decay, (1 + int(count)) / (10 + int(count)))
        for old, new in zip(averaged, current, strict=True):
            old.copy_(torch.lerp(new, old, keep) if old.is_floating_point() else new)

    return torch.no_grad()(update)


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
