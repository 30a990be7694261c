"""The examples of /docs: the documents' own, true to the types, and for every operation."""

import json
import re
from typing import Any

import msgspec
import pytest

from serving.errors import CODES
from serving.http import examples
from serving.http.endpoints import ENDPOINTS, Endpoint
from serving.http.openapi import document
from serving.messages import BatchError, Prediction, Problem
from shared.pixels import pixels
from tests.serving.conftest import Running
from tests.serving.http.test_endpoints import DOCUMENTS

TEXT = "".join(DOCUMENTS.values())
OPERATIONS: dict[str, dict[str, Any]] = {
    operation["operationId"]: operation for path in document()["paths"].values() for operation in path.values()
}

PLAIN = (
    "/health", "/model", "/metrics", "/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/cats-dogs",
    "/v2/models/cats-dogs/ready",
)  # fmt: skip
FILES = ("multipart/form-data", "image/png", "image/*", "application/octet-stream")


def test_every_command_of_the_documents_is_in_the_documentation_of_its_operation_and_none_other() -> None:
    in_documents = {block.strip() for block in re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL)}
    in_docs = {
        command
        for operation in OPERATIONS.values()
        for command in re.findall(r"```bash\n(.*?)\n```", operation["description"], re.DOTALL)
    }
    # Without a body there is nothing to explain; the documents give one of them for all.
    plain = {f"curl localhost:8000{path}" for path in PLAIN}
    asked = {block for block in in_documents if "localhost:8000" in block and "ops/" not in block}
    assert in_docs - plain == asked - plain


def test_the_answer_in_the_documents_is_the_one_in_the_documentation() -> None:
    (shown,) = re.findall(r"```json\n(.*?)```", TEXT, re.DOTALL)
    assert json.loads(shown) == OPERATIONS["predict"]["responses"]["200"]["content"]["application/json"]["example"]


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_has_a_command_and_examples_of_what_goes_in_and_out(name: str) -> None:
    operation = OPERATIONS[name]
    assert "```bash\ncurl" in operation["description"] or "curl -" in operation["description"]
    for message in (operation.get("requestBody"), operation["responses"]["200"]):
        for kind, content in message["content"].items() if message else ():
            # A file is named in the command; a picture cannot be written down.
            assert "example" in content or kind in FILES


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda endpoint: endpoint.path)
def test_a_document_shown_is_one_of_its_type(endpoint: Endpoint) -> None:
    for body in (endpoint.takes, endpoint.gives):
        for shown in body.values():
            if isinstance(shown, msgspec.Struct):
                msgspec.convert(msgspec.to_builtins(shown), type(shown))


def test_the_results_of_a_batch_shown_are_a_prediction_and_an_error() -> None:
    for result, kind in zip(examples.RESULTS.results, (Prediction, BatchError), strict=True):
        assert msgspec.convert(msgspec.to_builtins(result), kind) == result


def test_every_problem_shown_is_one_of_its_status() -> None:
    for operation in OPERATIONS.values():
        for status, answer in operation["responses"].items():
            for code, example in answer["content"].get("application/problem+json", {}).get("examples", {}).items():
                problem = msgspec.convert(example["value"], Problem)
                assert (problem.code, problem.status) == (code, int(status))
                assert problem.title == CODES[code][1]


def test_the_batch_shown_can_be_tried_out(server: Running) -> None:
    shown = OPERATIONS["predict_batch"]
    assert pixels(examples.PICTURE).shape == (224, 224, 3)
    batch = shown["requestBody"]["content"]["application/json"]["example"]
    answer = server.http.post("/predict/batch", json=batch).json()["results"]
    expected = shown["responses"]["200"]["content"]["application/json"]["example"]["results"]
    assert [set(result) for result in answer] == [set(result) for result in expected]
    assert answer[1]["error"]["code"] == expected[1]["error"]["code"]


def test_the_feedback_shown_is_taken_once_its_prediction_was_made(server: Running) -> None:
    shown = OPERATIONS["feedback"]
    feedback = shown["requestBody"]["content"]["application/json"]["example"]
    answer = server.http.post("/feedback", json={**feedback, "id": server.predict().json()["id"]}).json()
    assert set(answer) == set(shown["responses"]["200"]["content"]["application/json"]["example"])
