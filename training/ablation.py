"""Ablation: what each part of the training gains, on the same test photos.

The start, every member of the soup and their average, all in ``models/trained``, are each compared with the first
member by McNemar's test.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torchvision.transforms import v2

from shared.intervals import Interval, wilson
from shared.metrics import log_losses
from training import models, stage
from training.augmentation import degrade
from training.comparison import Comparison, compare
from training.labels import Decision
from training.machine import Machine
from training.measure import bootstrap
from training.pictures import Pictures
from training.train import predict_logits

START: Final = "linear probe on the untouched trunk"
AVERAGE: Final = "average of the kept"
MIRRORED: Final = "average, and the mirror image asked too"
Probabilities = npt.NDArray[np.float64]


@dataclass(frozen=True)
class AblationRow:
    """One line of the table. ``kept`` says whether the network is in the average, ``seconds`` what an epoch took."""

    name: str
    accuracy: Interval
    log_loss: Interval
    degraded: Interval
    against_first: Comparison | None
    kept: bool
    val_log_loss: float | None
    seconds: float | None
    mlflow_run_id: str | None


def ablation(trained: dict[str, Any], decided: dict[str, Decision], machine: Machine) -> list[AblationRow]:
    """Measure the networks in ``models/trained`` on the test side, with audited labels.

    Args:
        trained: the content of ``trained.json``.
        decided: decisions about labels.
        machine: to compute with.
    """
    clean = Pictures(stage.PREPARED / "test", decided=decided)
    degraded = Pictures(stage.PREPARED / "test", degrade, decided=decided)
    mirrored = Pictures(stage.PREPARED / "test", v2.RandomHorizontalFlip(1.0), decided=decided)
    labels = np.array(clean.labels)
    model = models.build(trained["model"], pretrained=False)
    model.to(memory_format=torch.channels_last).to(machine.device)

    def probabilities(file: str, data: Pictures, what: str) -> Probabilities:
        model.load_state_dict(torch.load(stage.TRAINED / file, weights_only=True, map_location="cpu"))
        logits, _ = predict_logits(model, data, machine, what)
        return logits.double().softmax(1).numpy()

    members = trained["members"]
    files = {START: "members/0.pt"} | {line["name"]: f"members/{n}.pt" for n, line in enumerate(members, 1)}
    files[AVERAGE] = "weights.pt"
    on_clean = {name: probabilities(file, clean, name) for name, file in files.items()}
    on_degraded = {name: probabilities(file, degraded, f"{name}, degraded") for name, file in files.items()}
    on_clean[MIRRORED] = (on_clean[AVERAGE] + probabilities(files[AVERAGE], mirrored, MIRRORED)) / 2
    on_degraded[MIRRORED] = on_degraded[AVERAGE]

    first = members[0]["name"]
    by_name = {line["name"]: line for line in members}
    rows = []
    for name, shares in on_clean.items():
        right = shares.argmax(1) == labels
        losses = log_losses(shares, labels)
        line = by_name.get(name, {})
        rows.append(
            AblationRow(
                name=name,
                accuracy=wilson(int(right.sum()), len(right)),
                log_loss=bootstrap(lambda chosen, losses=losses: float(losses[chosen].mean()), len(losses)),  # type: ignore[misc]
                degraded=wilson(int((on_degraded[name].argmax(1) == labels).sum()), len(labels)),
                against_first=None if name == first else compare(on_clean[first].argmax(1) == labels, right),
                kept=bool(line.get("kept", False)),
                val_log_loss=line.get("val_loss"),
                seconds=line.get("seconds"),
                mlflow_run_id=line.get("mlflow_run_id"),
            )
        )
    return rows
