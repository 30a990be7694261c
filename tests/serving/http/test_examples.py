"""The examples of /docs: those of docs/api.md, true to the types, and for every operation."""

import base64
import json
import re
from typing import Any

import msgspec
import pytest

from serving.errors import CODES
from serving.http import examples
from serving.http.openapi import document
from serving.messages import (
    BatchError,
    BatchRequest,
    BatchResponse,
    FeedbackRequest,
    FeedbackResponse,
    Health,
    ModelInService,
    Prediction,
    Problem,
)
from shared.pixels import pixels
from tests.conftest import ROOT
from tests.serving.conftest import Running

PAGE = (ROOT / "docs/api.md").read_text()
OPERATIONS: dict[str, dict[str, Any]] = {
    operation["operationId"]: operation for path in document()["paths"].values() for operation in path.values()
}
TYPES: dict[str, type[msgspec.Struct]] = {
    "predict": Prediction,
    "predictBatch": BatchResponse,
    "feedback": FeedbackResponse,
    "health": Health,
    "model": ModelInService,
}


def test_every_command_of_the_page_is_in_the_documentation_of_its_operation_and_none_other() -> None:
    on_page = {block.strip() for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)}
    in_docs = {
        command
        for operation in OPERATIONS.values()
        for command in re.findall(r"```bash\n(.*?)\n```", operation["description"], re.DOTALL)
    }
    # Without a body there is nothing to explain; the page gives one of them for all.
    plain = {f"curl localhost:8000{path}" for path in ("/health", "/model", "/metrics")}
    asked = {block for block in on_page if "localhost:8000" in block}
    assert in_docs - plain == asked - plain


def test_the_answer_in_the_readme_is_the_one_in_the_documentation() -> None:
    (shown,) = re.findall(r"```json\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert json.loads(shown) == OPERATIONS["predict"]["responses"]["200"]["content"]["application/json"]["example"]


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_has_a_command_and_examples_of_what_goes_in_and_out(name: str) -> None:
    operation = OPERATIONS[name]
    assert "```bash\ncurl" in operation["description"] or "curl -" in operation["description"]
    for message in (operation.get("requestBody"), operation["responses"]["200"]):
        for kind, content in message["content"].items() if message else ():
            # A file is named in the command; a picture cannot be written down.
            assert "example" in content or kind in ("multipart/form-data", "image/png")


@pytest.mark.parametrize("name", TYPES)
def test_an_answer_shown_is_one_of_its_type(name: str) -> None:
    shown = OPERATIONS[name]["responses"]["200"]["content"]["application/json"]["example"]
    msgspec.convert(shown, TYPES[name])
    assert set(shown) >= {field.name for field in msgspec.structs.fields(TYPES[name]) if field.required}


def test_the_results_of_a_batch_shown_are_a_prediction_and_an_error() -> None:
    results = examples.ANSWERS["predictBatch"]["results"]
    msgspec.convert(results[0], Prediction)
    msgspec.convert(results[1], BatchError)


def test_every_problem_shown_is_one_of_its_status() -> None:
    for operation in OPERATIONS.values():
        for status, answer in operation["responses"].items():
            for code, example in answer["content"].get("application/problem+json", {}).get("examples", {}).items():
                problem = msgspec.convert(example["value"], Problem)
                assert (problem.code, problem.status) == (code, int(status))
                assert problem.title == CODES[code][1]


def test_the_batch_shown_can_be_tried_out(server: Running) -> None:
    shown = examples.REQUESTS["predictBatch"]
    msgspec.convert(shown, BatchRequest)
    assert pixels(base64.b64decode(examples.PICTURE)).shape == (224, 224, 3)
    answer = server.http.post("/predict/batch", json=shown).json()["results"]
    assert [set(result) for result in answer] == [set(result) for result in examples.ANSWERS["predictBatch"]["results"]]
    assert answer[1]["error"]["code"] == examples.ANSWERS["predictBatch"]["results"][1]["error"]["code"]


def test_the_feedback_shown_is_taken_once_its_prediction_was_made(server: Running) -> None:
    msgspec.convert(examples.REQUESTS["feedback"], FeedbackRequest)
    given = {**examples.REQUESTS["feedback"], "id": server.predict().json()["id"]}
    assert set(server.http.post("/feedback", json=given).json()) == set(examples.ANSWERS["feedback"])
