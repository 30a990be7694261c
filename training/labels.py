"""The labels: which ones look wrong, and what a person decided about each.

A photo is judged by a network that never saw it: a logistic regression on the features of the untouched ImageNet
trunk, fitted on the other folds. If it predicts the other class, the label is a suspect; this is the rule of
confident learning (Northcutt et al. 2021, https://arxiv.org/abs/1911.00068, "prune by class" without its quota, since
a person reviews each of them here).

The decisions are ``training/labels.csv``, made by looking at each suspect: ``keep``, ``relabel`` to the other class, or
``exclude`` (both animals, or none). They are keyed by the photo's SHA-256, so they hold for every copy of it.
"""

import csv
import io
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec
import numpy as np
import numpy.typing as npt
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict

from shared.contract import CLASSES, Label
from training.stage import StageError

DECISIONS: Final = Path(__file__).with_name("labels.csv")
CONTRADICTED: Final = 0.5  # probability of a photo's own label below which the other photos contradict it
ID_LENGTH: Final = 20  # hexadecimal digits of a photo's SHA-256 in the name of its prepared picture
Choice = Literal["keep", "relabel", "exclude"]


@dataclass(frozen=True)
class Decision:
    """What a person decided about one photo's label, and why."""

    sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    label: Label
    decision: Choice
    reason: Annotated[str, msgspec.Meta(min_length=1)]


@dataclass(frozen=True)
class Suspect:
    """A photo whose label the other folds contradict; ``probability`` is what they give its label, 0..1."""

    photo: str
    side: str
    label: str
    probability: float
    decision: str
    reason: str


def decisions(path: Path = DECISIONS) -> dict[str, Decision]:
    """Read the decisions, by the first ``ID_LENGTH`` digits of the photo's SHA-256.

    Raises:
        StageError: a row has an unknown class or decision, or a photo has two rows.
    """
    with path.open(newline="") as file:
        try:
            rows = msgspec.convert(list(csv.DictReader(file)), list[Decision])
        except msgspec.ValidationError as error:
            raise StageError(f"{path}: {error}") from error
    twice = [sha256 for sha256, count in Counter(row.sha256 for row in rows).items() if count > 1]
    if twice:
        raise StageError(f"{path}: {twice[0]} has two decisions")
    return {row.sha256[:ID_LENGTH]: row for row in rows}


def audited(photo: str, label: str, decided: dict[str, Decision]) -> str | None:
    """Label of the photo after the audit, or None if it is to be left out."""
    decision = decided.get(photo)
    if decision is None or decision.decision == "keep" or decision.label != label:
        return label
    return None if decision.decision == "exclude" else CLASSES[1 - CLASSES.index(label)]


def out_of_fold(
    features: npt.NDArray[np.float32], labels: npt.NDArray[np.int64], folds: int, seed: int
) -> npt.NDArray[np.float64]:
    """Probability of each photo's own label, from a logistic regression fitted on the other folds.

    Args:
        features: float32 [n, channels].
        labels: int [n], class indices.
        folds: number of stratified folds; fewer if a class has fewer photos.
        seed: of the assignment to folds.

    Raises:
        StageError: a class has fewer than two photos.
    """
    smallest = int(min(np.bincount(labels, minlength=len(CLASSES))))
    if smallest < 2:
        raise StageError(f"a class has only {smallest} photos, too few to check its labels")
    scaled = (features - features.mean(0)) / features.std(0).clip(1e-6)
    # The same C as in the probe of `train`; 0.001 and 0.1 rank the same photos first.
    probe = LogisticRegression(C=0.01, max_iter=1000)
    deal = StratifiedKFold(min(folds, smallest), shuffle=True, random_state=seed)
    probabilities = cross_val_predict(probe, scaled, labels, cv=deal, method="predict_proba")
    own: npt.NDArray[np.float64] = probabilities[np.arange(len(labels)), labels]
    return own


def suspects_table(suspects: list[Suspect]) -> str:
    """The suspects as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("photo", "side", "label", "probability", "decision", "reason"))
    writer.writerows(
        (row.photo, row.side, row.label, f"{row.probability:.4f}", row.decision, row.reason) for row in suspects
    )
    return text.getvalue()
