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
from typing import Any

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
from training.params import Train
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
    print(f"precision: {'bfloat16 autocast' if bf16 else 'float32'} (bfloat16 arithmetic {'found' if bf16 else 'absent'})")
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


def train(prepared: Path, params: Train, out: Path, checkpoints: Path, split_digest: str, *, restart: bool) -> None:
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
    torch.manual_seed(params.seed)
    train_set, val_set = Pictures(prepared / "train"), Pictures(prepared / "val")
    print(f"pictures: {len(train_set)} to train on, {len(val_set)} to validate on")

    model = models.build(params.model, pretrained=params.pretrained)
    print(f"model: {params.model}, {sum(p.numel() for p in model.parameters()) / 1e6:.2f} million parameters")
    print(f"frozen: {model.freeze(params.frozen_blocks)}")
    model.to(machine.device, memory_format=torch.channels_last)

    steps_per_epoch = -(-len(train_set) // params.batch_size)
    optimizer = _optimizer(model, params)
    scheduler = LambdaLR(optimizer, _warmup_then_cosine(steps_per_epoch * params.epochs))
    average = AveragedModel(model, multi_avg_fn=_moving_average(params.weight_average), use_buffers=True)
    loss_function = nn.CrossEntropyLoss(label_smoothing=params.label_smoothing)

    identity = hashlib.sha256(msgspec.json.encode(params) + split_digest.encode()).hexdigest()
    checkpoint = checkpoints / f"{identity[:16]}.pt"
    state: dict[str, Any] = {"epoch": 0, "batch": 0, "loss": 0.0, "right": 0, "seconds": 0.0, "history": [], "run": None}
    best: dict[str, Tensor] = {}
    if restart:
        checkpoint.unlink(missing_ok=True)
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True, map_location="cpu")
        model.load_state_dict(saved["model"])
        average.load_state_dict(saved["average"])
        optimizer.load_state_dict(saved["optimizer"])
        scheduler.load_state_dict(saved["scheduler"])
        torch.set_rng_state(saved["rng"])
        state, best = saved["state"], saved["best"]
        print(f"resumed: epoch {state['epoch'] + 1}, batch {state['batch']}, from {checkpoint}")
    elif params.pretrained and params.probe_pictures:
        accuracy = _probe(model, train_set, params, machine)
        average.module.load_state_dict(model.state_dict())
        print(f"head: a linear probe on {min(params.probe_pictures, len(train_set))} pictures, {accuracy:.2%} right on them")

    def save() -> None:
        content = {
            "model": model.state_dict(),
            "average": average.state_dict(),
            "optimizer": optimizer.state_dict(),
            "scheduler": scheduler.state_dict(),
            "rng": torch.get_rng_state(),
            "state": state,
            "best": best,
        }
        buffer = io.BytesIO()
        torch.save(content, buffer)
        write_whole(checkpoint, buffer.getvalue())

    with tracking.run(state["run"], params.model) as state["run"]:
        if not state["history"] and not state["batch"]:
            mlflow.log_params(tracking.flat(params) | {"train_pictures": len(train_set), "split_digest": split_digest})
            mlflow.set_tag("git_commit", tracking.git_commit())
        saved_at = time.monotonic()
        while state["epoch"] < params.epochs:
            epoch = state["epoch"]
            train_set = Pictures(
                prepared / "train", augmentation(params.augmentation), pictures.epoch_seed(params.seed, epoch)
            )
            batches = pictures.shuffled(len(train_set), params.batch_size, params.seed, epoch)[state["batch"] :]
            loader = pictures.loader(train_set, batches, machine.workers)
            model.train()
            for images, labels in progress(loader, f"epoch {epoch + 1}/{params.epochs}", len(batches), " batches"):
                began = time.monotonic()
                images, labels = images.to(machine.device), labels.to(machine.device)
                with torch.autocast(machine.device.type, machine.autocast, enabled=machine.autocast is not None):
                    logits = model(images)
                    loss = loss_function(logits.float(), labels)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                scheduler.step()
                average.update_parameters(model)
                state["batch"] += 1
                state["loss"] += float(loss.detach()) * len(labels)
                state["right"] += int((logits.argmax(1) == labels).sum())
                state["seconds"] += time.monotonic() - began
                if time.monotonic() - saved_at > params.checkpoint_minutes * 60:
                    save()
                    saved_at = time.monotonic()

            val_logits, val_labels = predict(average.module, val_set, machine, "validating")
            line = Epoch(
                epoch=epoch + 1,
                train_loss=state["loss"] / len(train_set),
                train_accuracy=state["right"] / len(train_set),
                val_loss=float(nn.functional.cross_entropy(val_logits, val_labels)),
                val_accuracy=float((val_logits.argmax(1) == val_labels).double().mean()),
                seconds=state["seconds"],
            )
            if all(line.val_loss < earlier["val_loss"] for earlier in state["history"]):
                best = {name: tensor.detach().clone() for name, tensor in average.module.state_dict().items()}
            state["history"].append(asdict(line))
            state |= {"epoch": epoch + 1, "batch": 0, "loss": 0.0, "right": 0, "seconds": 0.0}
            save()
            mlflow.log_metrics({name: value for name, value in asdict(line).items() if name != "epoch"}, step=epoch + 1)
            print(
                f"epoch {line.epoch}: train loss {line.train_loss:.4f}, accuracy {line.train_accuracy:.2%}; "
                f"validation loss {line.val_loss:.4f}, accuracy {line.val_accuracy:.2%}; {line.seconds:.0f} s"
            )

        average.module.load_state_dict(best)
        val_logits, val_labels = predict(average.module, val_set, machine, "validating the best epoch")
        history = [Epoch(**line) for line in state["history"]]
        _write(out, average.module, params, history, split_digest, state["run"])
        mlflow.log_artifact(str(out / "curves.png"))
        mlflow.log_figure(
            plots.confusion_matrix(val_labels.numpy(), val_logits.argmax(1).numpy()), "validation_confusion.png"
        )
    checkpoint.unlink(missing_ok=True)


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
    out: Path, model: Classifier, params: Train, history: list[Epoch], split_digest: str, mlflow_run_id: str
) -> None:
    best = min(history, key=lambda line: line.val_loss)
    with whole_directory(out) as aside:
        torch.save({name: tensor.cpu() for name, tensor in model.state_dict().items()}, aside / "weights.pt")
        write_json(
            aside / "trained.json",
            {
                "model": params.model,
                "pretrained": params.pretrained,
                "best_epoch": best.epoch,
                "val_loss": best.val_loss,
                "val_accuracy": best.val_accuracy,
                "split_digest": split_digest,
                "mlflow_run_id": mlflow_run_id,
            },
        )
        text = io.StringIO()
        writer = csv.DictWriter(text, list(asdict(best)), lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(line) for line in history)
        write_whole(aside / "history.csv", text.getvalue())
        plots.curves(history).savefig(aside / "curves.png")
