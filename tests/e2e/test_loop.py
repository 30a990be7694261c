"""The loop: what the service gets wrong is kept, labelled, gathered and learned, and the next model is promoted."""

import random
import re
import shutil
from pathlib import Path
from typing import get_args

import click
import httpx
import pytest
from click.testing import CliRunner
from PIL import Image, ImageDraw

from shared.contract import Label
from shared.files import write_json
from shared.samples import SUFFIX
from tests.conftest import ROOT, encoded
from tests.e2e.test_process import serve
from tests.training.conftest import write_params
from tests.waiting import until
from training import cli, params, stage
from training.decisions import decisions
from training.promotion import shift
from training.promotion.files import read_contract
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


def command(function: click.Command, *arguments: str) -> str:
    result = CliRunner().invoke(function, arguments)
    assert result.exit_code == 0, result.output + repr(result.exception)
    return result.stdout


def trained() -> None:
    """Run the pipeline, but for what nothing here depends on."""
    for stage_ in (cli.fetch, cli.audit, cli.split, cli.prepare, cli.train, cli.export):
        command(stage_)
    model, report = PIPELINE["fp32"]
    model.write_bytes(stage.CANDIDATE.read_bytes())
    write_json(report, {"version": read_contract(model.read_bytes()).version})


def test_a_kind_of_photo_that_the_model_gets_wrong_is_mended_by_a_round_of_the_loop(in_folder: Path) -> None:
    put(in_folder / "photos", 420, hard=False)
    put(in_folder / "kind", 120, hard=True)
    learning = {"epochs": 6, "lr": 1e-3}
    write_params(in_folder, fetch={"source": ["photos"]}, split={"train": 0.25, "val": 0.06}, train=learning)
    for name, value in UNCHANGED.items():
        params.assign(Path("params.yaml"), f"train.augmentation.{name}", value)
    trained()
    assert "promote: no champion can serve" in command(cli.promote)
    before = Path("before.onnx")
    before.write_bytes((SERVED / "cats-dogs.fp32.onnx").read_bytes())

    command(shift.main, "halve", "kind", "shift")
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
    until(lambda: {path.stem for path in Path("samples").glob(f"*{SUFFIX}")} == told.keys())
    assert process.stop() == 0

    command(shift.main, "labels", "samples", "known.csv")
    command(cli.label, "samples", "--as", "script", "--import", "known.csv")
    assert decisions(Path("labels.csv")) == told
    command(cli.gather, "samples")
    trained()
    assert re.search(r"promote: .*significantly better in hard .* and worse in nothing", command(cli.promote))
    shutil.copytree(ROOT / "docs", "docs")
    # Fails unless errors are halved, by more than chance, and the test side is within its margin.
    said = command(shift.main, "measure", "before.onnx", str(SERVED / "cats-dogs.fp32.onnx"), "shift/held-back")
    page = shift.PAGE.read_text()
    assert said.partition("\n\n")[0] in page
    assert "not measured yet" not in page
