"""A handler and a row make an endpoint; boolean query values may have the forms that clients use."""

import asyncio
import re

import httpx
import msgspec
import pytest
from starlette.requests import Request
from starlette.responses import Response

from serving.http import openapi
from serving.http.app import create_app
from serving.http.endpoints import ENDPOINTS, Endpoint, table
from serving.settings import Settings
from tests.conftest import ROOT
from tests.serving.conftest import PHOTO, Running

DOCUMENTS = {name: (ROOT / name).read_text() for name in ("README.md", "docs/api.md")}


class Echo(msgspec.Struct):
    """What the toy endpoint takes and gives."""

    text: str


async def echo(request: Request) -> Response:
    return Response(await request.body(), media_type="application/json")


ECHO = Endpoint(
    "POST",
    "/echo",
    echo,
    "Say it again",
    takes={"application/json": Echo("meow")},
    gives={"application/json": Echo},
    problems=("malformed_request",),
    commands=("curl -d 'meow' localhost:8000/echo",),
)


def test_a_new_endpoint_takes_its_handler_and_one_row() -> None:
    async def answers() -> list[httpx.Response]:
        transport = httpx.ASGITransport(create_app(Settings(), endpoints=(*ENDPOINTS, ECHO)))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return [
                await client.post("/echo", content=b'{"text": "meow"}'),
                await client.get("/echo"),
                await client.get("/openapi.json"),
            ]

    echoed, refused, document = [answer.json() for answer in asyncio.run(answers())]
    assert echoed == {"text": "meow"}
    assert refused["code"] == "method_not_allowed"
    operation = document["paths"]["/echo"]["post"]
    assert (operation["operationId"], operation["summary"]) == ("echo", "Say it again")
    assert ECHO.commands[0] in operation["description"]
    assert set(operation["responses"]) == {"200", "400", "401", "403", "421"}
    body = operation["requestBody"]["content"]["application/json"]
    assert body == {"schema": {"$ref": "#/components/schemas/Echo"}, "example": {"text": "meow"}}
    assert document["components"]["schemas"]["Echo"]["properties"] == {"text": {"type": "string"}}
    assert table((ECHO,)).endswith("\n| `POST /echo` | Say it again |\n")


def test_the_route_table_of_a_document_is_made_of_the_rows() -> None:
    assert re.findall(r"\| route \|.*\n(?:\|.*\n)+", "".join(DOCUMENTS.values())) == [table()]


def test_with_keys_only_what_orchestrators_ask_is_open() -> None:
    described = openapi.document(keys=True)
    assert {} not in described["security"]
    for path, operations in described["paths"].items():
        for operation in operations.values():
            assert ("401" not in operation["responses"]) == (operation.get("security") == [])
            assert (operation.get("security") == []) == ("/health" in path)


def explained(server: Running, query: str) -> httpx.Response:
    return server.http.post(f"/predict{query}", files={"file": PHOTO})


@pytest.mark.parametrize("value", ["=true", "=True", "=TRUE", "=1", "=yes", "=on", "=", ""])
def test_a_flag_is_set_in_every_form_that_clients_use(server: Running, value: str) -> None:
    assert "evidence" in explained(server, f"?explain{value}").json()


@pytest.mark.parametrize("query", ["?explain=false", "?explain=False", "?explain=0", "?explain=no", "?explain=off", ""])
def test_a_flag_is_unset_in_every_form_too(server: Running, query: str) -> None:
    assert "evidence" not in explained(server, query).json()


def test_another_value_of_a_flag_is_refused_with_those_allowed(server: Running) -> None:
    problem = explained(server, "?explain=maybe").json()
    assert problem["code"] == "malformed_request"
    assert problem["detail"] == "explain is 'maybe'; allowed are true, 1, yes, on, false, 0, no, off"
