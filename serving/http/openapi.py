"""The OpenAPI document, made from the same types that decode requests and encode answers."""

from typing import Any

import msgspec

from serving import __version__
from serving.errors import CODES
from serving.http import examples
from serving.messages import (
    SCHEMAS,
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

READING = ("malformed_request", "unauthorized", "slow_request", "body_too_large", "overloaded", "draining", "not_ready")
TELLING = (
    "malformed_request",
    "unauthorized",
    "slow_request",
    "body_too_large",
    "unknown_prediction",
    "draining",
    "not_ready",
)
PREDICTING = (*READING, "deadline_exceeded")
IMAGE = ("image_too_large", "unsupported_format", "undecodable_image")


def document() -> dict[str, Any]:
    """Make the OpenAPI 3.1 document."""
    _, schemas = msgspec.json.schema_components(
        [
            Prediction,
            BatchRequest,
            BatchResponse,
            BatchError,
            FeedbackRequest,
            FeedbackResponse,
            Problem,
            Health,
            ModelInService,
        ],
        ref_template=SCHEMAS + "{name}",
    )
    explain = {
        "name": "explain",
        "in": "query",
        "description": "Add the evidence map to each prediction.",
        "schema": {"type": "boolean", "default": False},
    }
    form = {
        "type": "object",
        "required": ["file"],
        "properties": {
            "file": {
                "type": "string",
                "contentMediaType": "application/octet-stream",
                "description": "JPEG, PNG, WebP, GIF, BMP or AVIF, told by its bytes.",
            }
        },
    }
    made: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "Cats or dogs",
            "version": __version__,
            "summary": "Tells cats from dogs, and says when it is unsure.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": {
            "/predict": {
                "post": {
                    "operationId": "predict",
                    "summary": "Cat or dog?",
                    "tags": ["predictions"],
                    "parameters": [explain],
                    "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": form}}},
                    "responses": {
                        "200": _json("The answer.", "Prediction"),
                        **_problems(*PREDICTING, *IMAGE),
                    },
                }
            },
            "/predict/batch": {
                "post": {
                    "operationId": "predictBatch",
                    "summary": "Up to 64 pictures at once",
                    "description": "Results come in order; one bad picture does not spoil the others.",
                    "tags": ["predictions"],
                    "parameters": [explain],
                    "requestBody": {
                        "required": True,
                        "content": {"application/json": {"schema": _ref("BatchRequest")}},
                    },
                    "responses": {"200": _json("The answers.", "BatchResponse"), **_problems(*PREDICTING)},
                }
            },
            "/explain": {
                "post": {
                    "operationId": "explain",
                    "summary": "Why?",
                    "description": "The picture with its evidence drawn over it, in the page's colours: red where it "
                    "speaks for cats, blue where for dogs, stronger where it says more, relative to its own strongest "
                    "place. The numbers are `/predict?explain=true`'s.",
                    "tags": ["predictions"],
                    "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": form}}},
                    "responses": {
                        # OpenAPI 3.1 says of a binary body that its schema may be left out.
                        "200": {"description": "The drawing.", "content": {"image/png": {}}},
                        **_problems(*PREDICTING, *IMAGE),
                    },
                }
            },
            "/feedback": {
                "post": {
                    "operationId": "feedback",
                    "summary": "It was a dog",
                    "description": "Say what the picture of an earlier prediction showed, for the live accuracy. A "
                    "second feedback on one prediction replaces the first.",
                    "tags": ["predictions"],
                    "requestBody": {
                        "required": True,
                        "content": {"application/json": {"schema": _ref("FeedbackRequest")}},
                    },
                    "responses": {
                        "200": _json("It is noted.", "FeedbackResponse"),
                        **_problems(*TELLING),
                    },
                }
            },
            "/health": {"get": _get("health", "Is the process alive?", _json("It is.", "Health"))},
            "/health/ready": {
                "get": _get(
                    "ready",
                    "Will it answer?",
                    {
                        "description": "It will.",
                        "content": {
                            "application/json": {
                                "schema": {
                                    "type": "object",
                                    "required": ["status", "model"],
                                    "properties": {"status": {"const": "ready"}, "model": {"type": "string"}},
                                }
                            }
                        },
                    },
                    "not_ready",
                    "draining",
                )
            },
            "/model": {
                "get": _get(
                    "model",
                    "What answers?",
                    _json("Its contract.", "ModelInService"),
                    "unauthorized",
                    "not_ready",
                    "draining",
                )
            },
            "/metrics": {
                "get": _get(
                    "metrics",
                    "For Prometheus",
                    {"description": "Its text format.", "content": {"text/plain": {"schema": {"type": "string"}}}},
                    "unauthorized",
                )
            },
        },
        # Needed where the service has keys; `{}` says that it may have none.
        "security": [{}, {"bearer": []}, {"header": []}, {"basic": []}],
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
                "basic": {"type": "http", "scheme": "basic", "description": "The key as the password."},
            },
        },
    }
    for path in made["paths"].values():
        for operation in path.values():
            examples.add(operation)
    return made


def _ref(name: str) -> dict[str, str]:
    return {"$ref": SCHEMAS + name}


def _json(description: str, name: str) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": _ref(name)}}}


def _get(operation: str, summary: str, ok: dict[str, Any], *codes: str) -> dict[str, Any]:
    return {
        "operationId": operation,
        "summary": summary,
        "tags": ["service"],
        "responses": {"200": ok, **_problems(*codes)},
    }


def _problems(*codes: str) -> dict[str, Any]:
    """One response for each status, naming the codes that have it."""
    answers: dict[str, Any] = {}
    for status in sorted({CODES[code][0] for code in codes}):
        names = [code for code in codes if CODES[code][0] == status]
        answers[str(status)] = {
            "description": "; ".join(f"`{name}`: {CODES[name][1].lower()}" for name in names),
            "content": {
                "application/problem+json": {
                    "schema": _ref("Problem"),
                    "examples": {name: {"value": examples.problem(name)} for name in names},
                }
            },
        }
    return answers
