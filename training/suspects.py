"""Suspects: list the photos whose label looks wrong, for a person to check.

    catsdogs suspects

Writes ``data/suspects.csv``, the most suspicious first, with what was decided about each in ``training/labels.csv``;
their counts in ``reports/suspects.json``; and the contact sheet ``reports/suspects.png``. A data set in which a large
share of the labels looks swapped is refused, and ``train`` does not run.
"""

import io
from collections import Counter
from pathlib import Path
from typing import Final, get_args

import numpy as np
import torch

from shared.contract import CLASSES
from shared.files import write_json, write_whole
from shared.pixels import pixels
from training import labels, models, plots
from training.labels import Choice, Suspect
from training.machine import choose_machine
from training.models import Classifier
from training.params import Suspects
from training.pictures import Pictures
from training.split import SIDES
from training.stage import StageError
from training.train import features

SHOWN: Final = 48  # of the suspects, on the contact sheet


def suspects(prepared: Path, params: Suspects, out: Path, reports: Path) -> list[Suspect]:
    """Judge the label of every prepared picture, and write and return those that look wrong.

    Args:
        prepared: the folder that ``prepare`` filled.
        params: the section ``suspects`` of params.yaml.
        out: the CSV to write.
        reports: the folder for the counts and the contact sheet.

    Raises:
        StageError: no prepared pictures, or too large a share of the labels looks wrong.
    """
    sides = {side: Pictures(prepared / side) for side in SIDES}
    model = models.build(params.model, pretrained=params.pretrained)
    judged = sum(len(pictures) for pictures in sides.values()) if model.pretrained else 0
    found = _judge(sides, model, params) if model.pretrained else []
    decided = Counter(suspect.decision for suspect in found)
    undecided = decided.pop("", 0)
    title = f"{min(SHOWN, len(found))} of {len(found):,} suspects among {judged:,} photos: label, its probability"
    sheet = io.BytesIO()
    plots.contact_sheet(
        [pixels(_path(prepared, suspect).read_bytes()) for suspect in found[:SHOWN]],
        [f"{suspect.label} {suspect.probability:.3f} {suspect.decision}" for suspect in found[:SHOWN]],
        title,
        columns=8,
    ).savefig(sheet, dpi=110)

    counts = {choice: decided[choice] for choice in get_args(Choice)}
    document = {"photos": judged, "suspects": len(found), "decided": counts, "undecided": undecided}
    write_whole(out, labels.suspects_table(found))
    write_json(reports / "suspects.json", document)
    write_whole(reports / "suspects.png", sheet.getvalue())
    if model.pretrained:
        print(f"{out}: {len(found):,} of {judged:,} labels look wrong")
    else:
        print(f"labels not checked: {params.model} has no pretrained features to check them with")
    if undecided:
        print(f"{undecided:,} suspects not reviewed: see {reports / 'suspects.png'}, decide in {labels.DECISIONS}")
    return found


def _judge(sides: dict[str, Pictures], model: Classifier, params: Suspects) -> list[Suspect]:
    """The suspects, the most suspicious first."""
    machine = choose_machine()
    model.to(memory_format=torch.channels_last).to(machine.device)
    parts = [features(model, data, len(data), machine, f"judging {side}") for side, data in sides.items()]
    rows, truth = (torch.cat(tensors).numpy() for tensors in zip(*parts, strict=True))
    own = labels.out_of_fold(rows, truth, params.folds, params.seed)
    share = float(np.mean(own < labels.CONTRADICTED))
    if share > params.swapped:
        raise StageError(
            f"labels look swapped in {share:.0%} of the {len(own):,} photos: judged by the other photos, they show the "
            f"other animal; check the class folders (suspects.swapped allows {params.swapped:.0%})"
        )
    places = [(side, path) for side, data in sides.items() for path in data.paths]
    decided = labels.decisions()
    found = []
    for number in np.argsort(own, kind="stable")[: int((own < labels.CONTRADICTED).sum())]:
        side, path = places[number]
        label = CLASSES[truth[number]]
        decision = decided.get(path.stem)
        known = decision if decision and decision.label == label else None
        verdict, reason = (known.decision, known.reason) if known else ("", "")
        found.append(Suspect(path.stem, side, label, float(own[number]), verdict, reason))
    return found


def _path(prepared: Path, suspect: Suspect) -> Path:
    return prepared / suspect.side / suspect.label / f"{suspect.photo}.webp"
