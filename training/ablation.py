"""Ablation: what each part gains, on the same test photos with audited labels, as they are and degraded.

What each network says of a photo is computed once and combined: the probe that training starts from, the first look
alone, the second network alone, second looks at more and more crops, and the file that serves.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
import torch
from scipy.special import expit

from shared.intervals import Interval, wilson
from shared.metrics import Bools, Floats, Ints, log_losses
from shared.pixels import Photo
from shared.second_look import log_odds, look, views
from training import models, stage
from training.comparison import Comparison, compare
from training.corruptions import degraded
from training.machine import Machine
from training.measure import bootstrap
from training.photographs import Photographs, in_parallel
from training.robustness import File
from training.stage import progress

PROBE: Final = "linear probe on the untouched trunk"
FIRST: Final = "first look alone"
SECOND: Final = "second network alone, whole picture"
CROPS: Final = (1.0, 0.6, 0.45)
SECOND_LOOKS: Final = {f"second look at {CROPS[:count]}".replace(",)", ")"): count for count in (1, 2, 3)}
AT_ONCE: Final = 32


@dataclass(frozen=True)
class AblationRow:
    """One line of the table; ``looked_again`` is the share that the second network saw."""

    name: str
    accuracy: Interval
    log_loss: Interval
    looked_again: Interval
    degraded: Interval
    degraded_log_loss: Interval
    against_first: Comparison | None
    degraded_against_first: Comparison | None


class _Answers(NamedTuple):
    dogs: Floats  # probability, [n]
    again: Bools


def ablation(
    trained: dict[str, Any], fp32: File, serving: File, photos: Photographs, machine: Machine
) -> list[AblationRow]:
    """Measure the parts on the photos.

    Args:
        trained: the content of ``models/trained/trained.json``.
        fp32: the file whose networks are taken apart.
        serving: the file that a service takes.
        photos: of the test side, with audited labels.
        machine: to compute the probe with.
    """
    labels = np.array(photos.labels)
    variants: list[tuple[str, Callable[[Photo], Photo]]] = [("ablation", lambda photo: photo), ("degraded", degraded)]
    clean, poor = (
        {PROBE: _probe(trained["model"], photos, change, machine, f"{PROBE}, {what}")}
        | _networks(fp32, serving, photos, change, what)
        for what, change in variants
    )
    rows = []
    for name in clean:
        (right, losses), (poor_right, poor_losses) = (_judged(found[name], labels) for found in (clean, poor))
        references = [_judged(found[FIRST], labels)[0] for found in (clean, poor)]
        rows.append(
            AblationRow(
                name=name,
                accuracy=wilson(int(right.sum()), len(right)),
                log_loss=_mean(losses),
                looked_again=wilson(int(clean[name].again.sum()), len(right)),
                degraded=wilson(int(poor_right.sum()), len(right)),
                degraded_log_loss=_mean(poor_losses),
                against_first=None if name == FIRST else compare(references[0], right),
                degraded_against_first=None if name == FIRST else compare(references[1], poor_right),
            )
        )
    return rows


def _judged(answers: _Answers, labels: Ints) -> tuple[Bools, Floats]:
    """Which photos are right, and the loss of each."""
    return (answers.dogs > 0.5) == (labels == 1), log_losses(np.stack([1 - answers.dogs, answers.dogs], 1), labels)


def _mean(losses: Floats) -> Interval:
    return bootstrap(lambda rows: float(losses[rows].mean()), len(losses))


def _probe(name: str, photos: Photographs, change: Callable[[Photo], Photo], machine: Machine, what: str) -> _Answers:
    """The network as training started it."""
    model = models.build(name, pretrained=False)
    model.load_state_dict(torch.load(stage.TRAINED / "start.pt", weights_only=True, map_location="cpu"))
    model.to(memory_format=torch.channels_last).to(machine.device).eval()
    found = []
    with torch.inference_mode():
        for start in progress(range(0, len(photos), AT_ONCE), what, unit=" batches"):
            pictures = [change(photos[index]).square() for index in range(start, min(start + AT_ONCE, len(photos)))]
            batch = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).to(machine.device)
            found.append(model(batch).double().softmax(1)[:, 1].cpu().numpy())
    return _Answers(np.concatenate(found), np.zeros(len(photos), bool))


def _networks(
    fp32: File, serving: File, photos: Photographs, change: Callable[[Photo], Photo], what: str
) -> dict[str, _Answers]:
    """The file's networks, apart and together, and the file that serves."""
    when = msgspec.structs.replace(fp32.document.second_look, crops=CROPS)

    def ask(index: int) -> tuple[float, bool, list[float], float, bool]:
        photo = change(photos[index])
        first = fp32.network.first(photo.square()[np.newaxis])
        again = bool(first.probabilities.max() < when.sure or first.familiarity[0] < when.familiar)
        how = when if again else msgspec.structs.replace(when, crops=CROPS[:1])
        cats, dogs = fp32.network.closer(views(photo, first.evidence[0], how)).probabilities.T
        odds = log_odds(dogs, cats).tolist()
        served = look(photo, serving.network, serving.document.second_look)
        return float(first.probabilities[0, 1]), again, odds, float(served.outputs.probabilities[0, 1]), served.again

    rows = in_parallel(ask, len(photos), what)
    first = np.array([dogs for dogs, *_ in rows], np.float64)
    again = np.array([row[1] for row in rows])
    second = {count: np.array([expit(np.mean(row[2][:count])) for row in rows]) for count in SECOND_LOOKS.values()}
    never, always = np.zeros(len(rows), bool), np.ones(len(rows), bool)
    return {
        FIRST: _Answers(first, never),
        SECOND: _Answers(second[1], always),
        **{name: _Answers(np.where(again, second[count], first), again) for name, count in SECOND_LOOKS.items()},
        f"the file that serves, {serving.document.precision}": _Answers(
            np.array([row[3] for row in rows]), np.array([row[4] for row in rows])
        ),
    }
