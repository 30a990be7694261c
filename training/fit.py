"""The state of one training run: network, optimizer, weight average and history, saved and loaded together."""

import io
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel

from shared.files import write_whole
from training.models import Classifier
from training.params import Train

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Epoch:
    """One line of the history; losses are mean cross-entropies in nats."""

    epoch: int
    train_loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: float
    seconds: float


class Fit:
    """Everything that changes during training; a checkpoint holds all of it.

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
        self.best: Weights = {}
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
        """Append the epoch to the history, given the validation outputs, and keep its weights if they are the best."""
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
            "best": self.best,
            "history": [asdict(line) for line in self.history],
            "mlflow_run_id": self.mlflow_run_id,
            "epoch_so_far": [self.batch, self.seen, self.loss, self.right, self.seconds],
        }
        buffer = io.BytesIO()
        torch.save(content, buffer)
        write_whole(path, buffer.getvalue())

    def load(self, path: Path) -> None:
        """Resume from a checkpoint."""
        content = torch.load(path, weights_only=True, map_location="cpu")
        self.model.load_state_dict(content["model"])
        self.average.load_state_dict(content["average"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.scheduler.load_state_dict(content["scheduler"])
        self.best = content["best"]
        self.history = [Epoch(**line) for line in content["history"]]
        self.mlflow_run_id = content["mlflow_run_id"]
        self.batch, self.seen, self.loss, self.right, self.seconds = content["epoch_so_far"]

    def _begin_epoch(self) -> None:
        self.batch, self.seen, self.loss, self.right, self.seconds = 0, 0, 0.0, 0, 0.0


def average(members: list[Weights]) -> Weights:
    """Mean of several networks' weights.

    It works for networks fine-tuned from one start, and beats each of them at no cost at inference.
    """
    return {
        name: torch.stack([member[name] for member in members]).mean(0) if tensor.is_floating_point() else tensor
        for name, tensor in members[0].items()
    }


def greedy_soup(members: list[Weights], loss: Callable[[Weights], float]) -> tuple[list[int], Weights]:
    """Average the members that help (Wortsman et al. 2022, https://arxiv.org/abs/2203.05482, recipe 1).

    The best member is the start; each next best joins if the average with it has a smaller loss.

    Returns:
        The indices of those averaged, the best first, and the average.
    """
    losses = [loss(member) for member in members]
    order = sorted(range(len(members)), key=losses.__getitem__)
    chosen, best = order[:1], losses[order[0]]
    for number in order[1:]:
        mixed = loss(average([members[index] for index in (*chosen, number)]))
        if mixed < best:
            chosen, best = [*chosen, number], mixed
    return chosen, average([members[index] for index in chosen])


def _optimizer(model: Classifier, params: Train) -> torch.optim.AdamW:
    trunk = [parameter for parameter in model.trunk.parameters() if parameter.requires_grad]
    # A network from scratch has no pretrained weights to protect: its trunk learns as fast as its head.
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
