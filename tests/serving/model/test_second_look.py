"""The service looks again where the first look is not sure, and answers what the second look gives."""

import json
import math
from base64 import b64encode
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

from serving import cli
from serving.model import session as models
from shared.contract import Contract
from shared.journal import PredictionLine, files, read
from shared.pixels import decode
from shared.second_look import Look
from tests.serving.conftest import PHOTO, Start
from tests.serving.model.test_session import rewritten
from tests.waiting import until


@pytest.fixture(scope="module")
def always(shipped: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped file, which looks at every picture again."""
    return looking(shipped, tmp_path_factory.mktemp("always") / "m.onnx", sure=2.0)


@pytest.fixture(scope="module")
def never(shipped: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped file, which looks at every picture once."""
    return looking(shipped, tmp_path_factory.mktemp("never") / "m.onnx", sure=0.0)


def looking(shipped: Path, out: Path, sure: float) -> Path:
    how = models.load(shipped).contract.second_look
    return rewritten(shipped, out, second_look=msgspec.structs.replace(how, sure=sure, familiar=0.0))


def expected(path: Path) -> tuple[Look, Contract]:
    model = models.load(path)
    return model.look(decode(PHOTO)), model.contract


def is_given(answer: dict[str, Any], path: Path) -> None:
    """The answer is what the file, computed here, gives for ``PHOTO``."""
    look, contract = expected(path)
    cats, dogs = look.outputs.probabilities[0].tolist()
    assert answer["probabilities"] == pytest.approx({"cats": cats, "dogs": dogs}, abs=1e-4)
    assert answer["familiarity"] == pytest.approx(float(look.outputs.familiarity[0]), abs=1e-4)
    label, verdict, because = contract.judge((cats, dogs), float(look.outputs.familiarity[0]))
    assert (answer["predicted_label"], answer["verdict"], answer["unsure_because"]) == (label, verdict, because)


def test_the_two_looks_at_the_test_s_picture_differ(always: Path, never: Path) -> None:
    (again, _), (once, _) = expected(always), expected(never)
    assert (again.again, once.again) == (True, False)
    assert abs(again.outputs.probabilities - once.outputs.probabilities).max() > 0.01


@pytest.mark.parametrize("looks", ["always", "never"])
@pytest.mark.parametrize("lanes", [1, 2])
def test_every_way_to_ask_gets_the_same_answer(
    looks: str, lanes: int, start: Start, request: pytest.FixtureRequest
) -> None:
    path: Path = request.getfixturevalue(looks)
    server = start(model=str(path), lanes=lanes)
    is_given(server.predict().json(), path)
    item = {"data": b64encode(PHOTO).decode()}
    answers = server.http.post("/predict/batch", json={"images": [item] * 5}).json()["results"]
    for answer in answers:
        is_given(answer, path)


def test_the_command_line_looks_again_too(always: Path, tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(PHOTO)
    result = CliRunner().invoke(cli.main, ["predict", "--json", "--model", str(always), str(tmp_path / "photo.jpg")])
    is_given(json.loads(result.stdout), always)


def test_evidence_is_the_first_look_s_and_speaks_for_its_answer(always: Path, never: Path, start: Start) -> None:
    twice, once = (start(model=str(path)) for path in (always, never))
    again, first = (server.predict(params={"explain": "true"}).json() for server in (twice, once))
    assert np.allclose(again["evidence"], first["evidence"], atol=1e-3)
    odds = first["probabilities"]["dogs"] / first["probabilities"]["cats"]
    temperature = once.http.get("/model").json()["temperature"]
    assert np.mean(first["evidence"]) / temperature == pytest.approx(math.log(odds), abs=1e-3)
    assert twice.explain().content == once.explain().content


@pytest.mark.parametrize(("looks", "count"), [("always", 2), ("never", 0)])
def test_second_looks_are_counted_and_the_journal_says_which_pictures_had_one(
    looks: str, count: int, start: Start, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    server = start(model=str(request.getfixturevalue(looks)), journal=str(tmp_path))
    assert "\ncatsdogs_second_looks_total 0" in server.http.get("/metrics").text
    server.predict()
    server.predict()
    server.explain()
    assert server.metric("catsdogs_second_looks_total") == count
    until(lambda: server.metric("catsdogs_journal_lines_total") == 2)
    lines = list(read(file for _, file in files(tmp_path)))
    assert [isinstance(line, PredictionLine) and line.again for line in lines] == [count > 0] * 2
