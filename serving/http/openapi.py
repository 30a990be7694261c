"""The OpenAPI document, made from the endpoints and the types of their requests and answers."""

from collections.abc import Iterable
from typing import Any, Final

import msgspec

from serving import __version__
from serving.errors import CODES
from serving.http import examples
from serving.http.auth import OPEN
from serving.http.endpoints import ENDPOINTS, Body, Endpoint
from serving.messages import SCHEMAS, BatchError, Prediction, Problem

KEYS: Final = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    "basic": {"type": "http", "scheme": "basic", "description": "The key as the password."},
}


def document(endpoints: Iterable[Endpoint] = ENDPOINTS, *, keys: bool = False) -> dict[str, Any]:
    """Make the OpenAPI 3.1 document; ``keys``: whether API keys are required."""
    types: set[Any] = {Problem, Prediction, BatchError}  # BatchResponse refers to the latter two by name
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in endpoints:
        types |= {
            _type(shown) for body in (endpoint.takes, endpoint.gives) for shown in body.values() if shown is not None
        }
        paths.setdefault(endpoint.path, {})[endpoint.method.lower()] = _operation(endpoint)
    _, schemas = msgspec.json.schema_components(sorted(types, key=str), ref_template=SCHEMAS + "{name}")
    security: list[dict[str, list[str]]] = [{name: []} for name in KEYS]
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Cats or dogs",
            "version": __version__,
            "summary": "Tells cats from dogs, and says when it is unsure.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "."}],  # where the document is, also behind a proxy's prefix
        "paths": paths,
        "security": security if keys else [{}, *security],  # `{}`: no key is needed
        "components": {"schemas": schemas, "securitySchemes": KEYS},
    }


def _operation(endpoint: Endpoint) -> dict[str, Any]:
    commands = [f"```bash\n{command}\n```" for command in endpoint.commands]
    operation: dict[str, Any] = {
        "operationId": endpoint.handler.__name__,
        "summary": endpoint.summary,
        "description": "\n\n".join([endpoint.description, *commands]).strip(),
        "tags": ["predictions" if endpoint.takes else "service"],
        "parameters": [
            {"name": name, "in": "query", "description": text, "schema": {"type": "boolean", "default": False}}
            for name, text in endpoint.flags.items()
        ],
        "responses": {"200": {"description": "OK", "content": _content(endpoint.gives)}},
    }
    if endpoint.takes:
        operation["requestBody"] = {"required": True, "content": _content(endpoint.takes)}
    codes = [*endpoint.problems, "misdirected_request"]
    if endpoint.method == "POST":
        codes.append("foreign_origin")
    if endpoint.path in OPEN:
        operation["security"] = []
    else:
        codes.append("unauthorized")
    operation["responses"] |= _problems(codes)
    return operation


def _type(shown: object) -> type:
    return shown if isinstance(shown, type) else type(shown)


def _content(body: Body) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for media, shown in body.items():
        content[media] = {}
        if shown is not None:
            (content[media]["schema"],), _ = msgspec.json.schema_components(
                [_type(shown)], ref_template=SCHEMAS + "{name}"
            )
        if not isinstance(shown, type | None):
            content[media]["example"] = msgspec.to_builtins(shown)
    return content


def _problems(codes: Iterable[str]) -> dict[str, Any]:
    """One response for each status, with all codes of that status."""
    answers: dict[str, Any] = {}
    for status in sorted({CODES[code][0] for code in codes}):
        names = [code for code in codes if CODES[code][0] == status]
        answers[str(status)] = {
            "description": "; ".join(f"`{name}`: {CODES[name][1]}" for name in names),
            "content": {
                "application/problem+json": {
                    "schema": {"$ref": SCHEMAS + Problem.__name__},
                    "examples": {name: {"value": msgspec.to_builtins(examples.error(name))} for name in names},
                }
            },
        }
    return answers
