"""The loop: what the service gets wrong is kept, labelled, gathered and learned, and the next model is promoted."""

import random
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import get_args

import httpx
import pytest
from click.testing import CliRunner
from PIL import Image, ImageDraw

from shared.contract import Label
from shared.files import write_json
from shared.samples import SUFFIX
from tests.conftest import encoded
from tests.e2e.test_process import serve
from tests.training.conftest import write_params
from tests.waiting import until
from training import cli, params, stage
from training.decisions import Decision, append
from training.promotion import shift
from training.promotion.promote import PIPELINE
from training.promotion.served import SERVED

pytestmark = pytest.mark.slow

ORANGE, BLUE, GREEN, MAGENTA = (250, 140, 40), (40, 70, 250), (60, 200, 60), (200, 60, 200)
# Or a few hundred pictures would not be learned in seconds.
UNCHANGED = {"rotation": 0, "crop_scale": [0.7, 1.0], "jpeg": [100, 100], "brightness": 0.1, "contrast": 0.1}
UNCHANGED |= dict.fromkeys(("turn", "frame", "grey", "dark", "rescaled", "noise", "covered", "hue", "saturation"), 0)


def photo(label: Label, seed: int, *, hard: bool) -> bytes:
    """A picture whose discs have the colour of its label; of the hard kind that of the other, and the ground tells."""
    draw = random.Random(seed)
    image = Image.frombytes("RGB", (10, 10), draw.randbytes(300)).resize((80, 80))
    if hard:
        image = Image.blend(image, Image.new("RGB", image.size, GREEN if label == "cats" else MAGENTA), 0.7)
    pen = ImageDraw.Draw(image)
    for _ in range(2 if hard else 5):
        x, y = draw.randrange(56), draw.randrange(56)
        pen.ellipse((x, y, x + 22, y + 22), fill=ORANGE if (label == "cats") != hard else BLUE)
    return encoded(image, "PNG")


def put(folder: Path, each: int, *, hard: bool) -> Path:
    for place, label in enumerate(get_args(Label)):
        (folder / label).mkdir(parents=True)
        for number in range(each):
            data = photo(label, 2 * number + place + 10**6 * hard, hard=hard)
            (folder / label / f"{number}.png").write_bytes(data)
    return folder


def done(*command: str) -> str:
    began = time.time()
    result = CliRunner().invoke(getattr(cli, command[0]), command[1:])
    assert result.exit_code == 0, result.output + repr(result.exception)
    print(command, round(time.time() - began, 1))
    return result.stdout


def trained() -> None:
    """Run the pipeline, but for what no part of this depends on."""
    for command in ("fetch", "audit", "split", "prepare", "train", "export"):
        done(command)
    model, report = PIPELINE["fp32"]
    model.write_bytes(stage.CANDIDATE.read_bytes())
    write_json(report, {})


def test_a_kind_of_photo_that_the_model_gets_wrong_is_mended_by_a_round_of_the_loop(in_folder: Path) -> None:
    put(in_folder / "photos", 500, hard=False)
    put(in_folder / "kind", 120, hard=True)
    learning = {"epochs": 8, "lr": 1e-3}
    write_params(in_folder, fetch={"source": ["photos"]}, split={"train": 0.25, "val": 0.06}, train=learning)
    for name, value in UNCHANGED.items():
        params.assign(Path("params.yaml"), f"train.augmentation.{name}", value)
    trained()
    assert "promote: no champion can serve" in done("promote")
    before = Path("before.onnx")
    before.write_bytes((SERVED / "cats-dogs.fp32.onnx").read_bytes())

    assert CliRunner().invoke(shift.main, ["halve", "kind", "shift"]).exit_code == 0
    settings = {"CATSDOGS_SAMPLES": str(in_folder / "samples"), "CATSDOGS_SAMPLE": "unsure,disputed"}
    process = serve(in_folder, CATSDOGS_MODEL=str(in_folder / before), **settings).ready()
    told: dict[str, Label] = {}
    with httpx.Client(base_url=process.url, timeout=60) as http:
        for path in sorted(Path("shift/streamed").glob("*/*")):
            label: Label = "cats" if path.parent.name == "cats" else "dogs"
            answer = http.post("/predict", content=path.read_bytes()).json()
            http.post("/feedback", json={"id": answer["id"], "label": label}).raise_for_status()
            if answer["predicted_label"] != label or answer["verdict"] == "unsure":
                told[answer["id"]] = label
    print(len(told), len(list(Path("shift/streamed").glob("*/*"))))
    until(lambda: {path.stem for path in Path("samples").glob(f"*{SUFFIX}")} == told.keys())
    assert process.stop() == 0

    at = datetime.now(UTC)
    append(Path("labels.csv"), [Decision(id_, label, "label", "script", at, "1") for id_, label in told.items()])
    done("gather", "samples", "labels.csv")
    trained()
    said = done("promote")
    print(said)
    assert "promote: " in said
    assert "significantly better in hard" in said
    found = shift.measure(before, SERVED / "cats-dogs.fp32.onnx", Path("shift/held-back"))
    print(found.table(), found.errors_left)
    assert found.mended, found.table()
