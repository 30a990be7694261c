"""Generated pictures that a small network learns to tell apart within seconds, prepared once for all tests."""

from collections.abc import Mapping
from pathlib import Path

import msgspec
import pytest
from ruamel.yaml import YAML

from shared.contract import Contract, Exam, Histogram, Provenance, Reference, SecondLook, Unsure
from tests.conftest import ROOT, draw_photos
from training import params
from training.audit import audit
from training.fetch import fetch
from training.params import Train
from training.prepare import prepare
from training.split import split

SMALL = {
    "model": "simple_cnn",
    "pretrained": False,
    "epochs": 3,
    "batch_size": 16,
    "head_lr": 3e-3,
    "weight_average": 0.9,
}

NEVER = SecondLook(sure=0.0, familiar=0.0, side=224, crops=(1.0,), temperature=1.0)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as `data/` is after prepare: 60 cats and 60 dogs."""
    folder = tmp_path_factory.mktemp("generated") / "data"
    fetch([str(draw_photos(folder.parent / "photos", 60))], folder / "raw")
    photos = split(audit(folder / "raw", folder / "audit.csv", 0.97), folder / "split.csv", 0.7, 0.15)
    prepare(photos, folder / "raw", folder / "processed_split")
    return folder


@pytest.fixture(scope="session")
def prepared(data: Path) -> Path:
    """The prepared pictures."""
    return data / "processed_split"


@pytest.fixture
def section() -> Train:
    """The section `train` for a run of seconds."""
    whole = msgspec.to_builtins(params.load(ROOT / "params.yaml").train)
    return msgspec.convert(whole | SMALL, Train)


@pytest.fixture
def work(in_folder: Path, data: Path) -> Path:
    """A folder in which the stages up to prepare have run, with parameters for a training run of seconds."""
    (in_folder / "data").mkdir()
    for path in data.iterdir():
        (in_folder / "data" / path.name).symlink_to(path)
    write_params(in_folder)
    return in_folder


def contract(unsure: Unsure, second_look: SecondLook = NEVER) -> Contract:
    """The contract of a file with these thresholds."""
    histogram = Histogram(edges=(0.0, 1.0), counts=(1,))
    return Contract(
        version="1",
        architecture="simple_cnn",
        precision="fp32",
        temperature=1.0,
        second_look=second_look,
        unsure=unsure,
        provenance=Provenance("0" * 64, "0" * 64, "unknown", "f" * 32, "2026-11-23T00:00:00+00:00"),
        reference=Reference(confidence=histogram, brightness=histogram, familiarity=histogram),
        exam=Exam(questions=(), tolerance=0.0),
    )


def write_params(folder: Path, **sections: Mapping[str, object]) -> None:
    """Write the repository's own params.yaml with a small training run, and other values of the sections named."""
    document = YAML(typ="safe").load((ROOT / "params.yaml").read_text())
    document["train"] |= SMALL
    document["closer"] = None
    document["export"]["corrupted"]["photos"] = 2
    document["evaluate"] |= {"timed": 4, "covered": 4, "corrupted": 2}
    for name, values in sections.items():
        document[name] |= values
    with (folder / "params.yaml").open("w") as file:
        YAML().dump(document, file)
