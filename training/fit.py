"""The state of one training run: network, optimizer, weight average and history, saved and loaded together."""

import io
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel

from shared.files import write_whole
from training import group, whole_batch
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
        start: the weights it starts from.
        made_of: digests of what the run depends on, for a checkpoint to be resumed with the same only.
    """

    def __init__(self, model: Classifier, params: Train, steps: int, start: Weights, made_of: dict[str, str]) -> None:
        """Make the optimizer, its schedule and the average."""
        self.start = start
        self.made_of = made_of
        self.model = model
        for module in model.modules():
            if isinstance(module, whole_batch.Drop):
                module.batch_size = params.batch_size
        # Which gives all processes the first one's weights, and the mean of their gradients.
        self.network = DistributedDataParallel(model) if group.size() > 1 else model
        self.optimizer = _optimizer(model, params)
        self.scheduler = LambdaLR(self.optimizer, _warmup_then_cosine(steps))
        self.average = AveragedModel(model, multi_avg_fn=_moving_average(params.weight_average), use_buffers=True)
        self.loss_function = nn.CrossEntropyLoss(label_smoothing=params.label_smoothing, reduction="sum")
        self.history: list[Epoch] = []
        self.mlflow_run_id: str | None = None
        self._begin_epoch()

    @property
    def averaged(self) -> Classifier:
        """The network with the averaged weights."""
        return cast("Classifier", self.average.module)

    def step(self, images: Tensor, labels: Tensor, autocast: torch.dtype | None, whole: int) -> None:
        """Learn from one batch of ``whole`` pictures.

        Args:
            images: this process's part of it, uint8 [n, 3, side, side], on the model's device.
            labels: int64 [n], likewise.
            autocast: the type to compute in, unless float32.
            whole: pictures in the batch.
        """
        began = time.monotonic()
        with torch.autocast(images.device.type, autocast, enabled=autocast is not None):
            logits = self.network(images)
            loss = self.loss_function(logits.to(self.model.mean.dtype), labels)
        self.optimizer.zero_grad(set_to_none=True)
        (loss * (group.size() / whole)).backward()  # the mean of the processes' gradients is the batch's
        self.optimizer.step()
        self.scheduler.step()
        self.average.update_parameters(self.model)
        self.batch += 1
        self.seen += whole
        figures = group.total(torch.stack([loss.detach(), (logits.argmax(1) == labels).sum()])).tolist()
        self.loss += figures[0]
        self.right += int(figures[1])
        self.seconds += time.monotonic() - began

    def end_epoch(self, logits: Tensor, labels: Tensor) -> Epoch:
        """Append the epoch to the history, given the validation outputs."""
        line = Epoch(
            epoch=len(self.history) + 1,
            train_loss=self.loss / self.seen,
            train_accuracy=self.right / self.seen,
            val_loss=float(nn.functional.cross_entropy(logits, labels)),
            val_accuracy=float((logits.argmax(1) == labels).double().mean()),
            seconds=self.seconds,
        )
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
            "start": self.start,
            "made_of": self.made_of,
            "history": [asdict(line) for line in self.history],
            "mlflow_run_id": self.mlflow_run_id,
            "epoch_so_far": [self.batch, self.seen, self.loss, self.right, self.seconds],
        }
        buffer = io.BytesIO()
        torch.save(content, buffer)
        write_whole(path, buffer.getvalue())

    def load(self, content: dict[str, Any]) -> None:
        """Resume from the content of a checkpoint."""
        self.model.load_state_dict(content["model"])
        self.average.load_state_dict(content["average"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.scheduler.load_state_dict(content["scheduler"])
        self.history = [Epoch(**line) for line in content["history"]]
        self.mlflow_run_id = content["mlflow_run_id"]
        self.batch, self.seen, self.loss, self.right, self.seconds = content["epoch_so_far"]

    def _begin_epoch(self) -> None:
        self.batch, self.seen, self.loss, self.right, self.seconds = 0, 0, 0.0, 0, 0.0


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
