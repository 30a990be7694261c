"""The JSON of requests and answers. The OpenAPI document is made from these types."""

from typing import Annotated, Any, Final, Literal, Self

import msgspec
from msgspec import UNSET, Meta, UnsetType

from serving.engine.wire import Answer, Because, Verdict
from shared.contract import Actual, Contract, Label

MAX_BATCH: Final = 64
# More braces and commas than any batch needs; base64 has none.
MAX_OBJECTS: Final = 1_000
MAX_VALUES: Final = 100_000
SCHEMAS: Final = "#/components/schemas/"  # where the OpenAPI document has the types below


PictureFile = Annotated[
    str,
    Meta(
        description="A JPEG, PNG, WebP, GIF, BMP, AVIF or (with the extra `heif`) HEIF file; "
        "its name and Content-Type do not matter.",
        extra_json_schema={"contentMediaType": "application/octet-stream"},
    ),
]


class PictureForm(msgspec.Struct, frozen=True):
    """A multipart form with one picture."""

    file: PictureFile


class PicturesForm(msgspec.Struct, frozen=True):
    """A multipart form with up to 64 pictures, each in a field of the same name."""

    file: Annotated[list[PictureFile], Meta(min_length=1, max_length=MAX_BATCH)]


class Probabilities(msgspec.Struct, frozen=True):
    """How likely each animal is; the two add up to 1."""

    cats: Annotated[float, Meta(ge=0, le=1)]
    dogs: Annotated[float, Meta(ge=0, le=1)]


ClientId = Annotated[str, Meta(description="The id that the client sent with the picture, if any.")]


class Prediction(msgspec.Struct, kw_only=True):
    """The answer for one picture."""

    id: Annotated[str, Meta(description="Made by the service; feedback refers to it.")]
    client_id: ClientId | UnsetType = UNSET
    predicted_label: Annotated[Label, Meta(description="The more likely animal, even when unsure.")]
    probabilities: Probabilities
    verdict: Annotated[Verdict, Meta(description="The label, or `unsure` where it would be a guess.")]
    unsure_because: Because | None
    familiarity: Annotated[
        float, Meta(ge=0, le=1, description="How similar the picture is to those in training; low for a car.")
    ]
    model: Annotated[str, Meta(description="Version of the model that answered.")]
    evidence: (
        Annotated[
            list[list[float]],
            Meta(description="7×7 map, positive where the picture speaks for dogs; with explain=true only."),
        ]
        | UnsetType
    ) = UNSET

    @classmethod
    def of(cls, answer: Answer, prediction_id: str, client_id: str | None, model: str) -> Self:
        """Make it from a lane's answer."""
        prediction = cls(
            id=prediction_id,
            client_id=UNSET if client_id is None else client_id,
            predicted_label=answer.label,
            probabilities=Probabilities(cats=answer.cats, dogs=answer.dogs),
            verdict=answer.verdict,
            unsure_because=answer.unsure_because,
            familiarity=answer.familiarity,
            model=model,
        )
        if answer.evidence is not None:
            prediction.evidence = answer.evidence
        return prediction


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """The one form of every error (RFC 9457)."""

    type: Annotated[str, Meta(description="A URI that names the kind of problem.")]
    title: str
    status: Annotated[int, Meta(ge=400, le=599)]
    detail: str
    code: Annotated[str, Meta(description="The kind of problem, for programs.")]
    request_id: str
    trace_id: Annotated[str, Meta(description="Of the request's `traceparent`.")] | UnsetType = UNSET
    error: Annotated[str, Meta(description="The detail again; under /v2 only.")] | UnsetType = UNSET


class BatchImage(msgspec.Struct, frozen=True, kw_only=True):
    """One picture of a batch."""

    data: Annotated[
        bytes, Meta(description="The picture file, base64; also a data: URI, URL-safe, with line breaks or unpadded.")
    ]
    id: Annotated[str, Meta(max_length=200, description="Returned with the result as `client_id`.")] | None = None


class BatchRequest(msgspec.Struct, frozen=True):
    """Up to 64 pictures."""

    images: Annotated[list[BatchImage], Meta(max_length=MAX_BATCH)]


class BatchError(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a picture that could not be classified; the others of its batch are."""

    client_id: ClientId | UnsetType = UNSET
    error: Problem


class BatchResponse(msgspec.Struct, frozen=True):
    """Results in the order of the pictures."""

    # msgspec encodes a union of two untagged structs but makes no schema of it, so the schema names them.
    results: Annotated[
        list[Any],
        Meta(
            extra_json_schema={"items": {"oneOf": [{"$ref": SCHEMAS + name} for name in ("Prediction", "BatchError")]}}
        ),
    ]
    model: str


class FeedbackRequest(msgspec.Struct, frozen=True):
    """What the picture of an earlier prediction showed."""

    id: Annotated[str, Meta(max_length=200, description="The prediction's `id`.")]
    label: Annotated[Actual, Meta(description="The animal in the picture, or `neither` or `both`.")]


class FeedbackResponse(msgspec.Struct, frozen=True, kw_only=True):
    """The feedback was recorded."""

    id: str
    label: Actual
    predicted_label: Annotated[Label, Meta(description="The label of the prediction.")]
    correct: Annotated[
        bool | None, Meta(description="Whether the two are equal; null where the picture shows neither or both.")
    ]


class ModelInService(Contract, frozen=True, kw_only=True):
    """The contract of the model in service, and its file."""

    file: Annotated[str, Meta(description="Name of the file in service.")]
    fallback: Annotated[
        str | None,
        Meta(description="Why the fp32 file serves instead of the int8 file; else null."),
    ]


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """The process can answer."""

    status: Literal["ok"] = "ok"


class Ready(msgspec.Struct, frozen=True, kw_only=True):
    """The model has passed its exam and new work is accepted."""

    status: Literal["ready"] = "ready"
    model: Annotated[str, Meta(description="Version of the model that answers.")]
