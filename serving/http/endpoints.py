"""The endpoints of the API, one row each.

Routing, the OpenAPI document with its examples, and the documents' route table follow from the rows.
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Final, Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from serving import __version__
from serving.http import examples, inference, routes
from serving.http.routes import JSON
from serving.inference import Live, ModelMetadata, ReadyToInfer, ServerMetadata
from serving.messages import FeedbackRequest, FeedbackResponse, Health, PictureForm, PicturesForm, Ready

# By media type: an example of the body, or its type if no example can be shown, or None if no type describes it.
Body = Mapping[str, object]

UPLOAD: Final[Body] = {"multipart/form-data": PictureForm, "image/*": None, "application/octet-stream": None}
EXPLAIN: Final = {"explain": "Add the evidence map to each prediction."}

# Problems of an endpoint that needs a model; reads a body; queues for a lane; has one picture decoded.
SERVED: Final = ("draining", "not_ready")
READ: Final = ("malformed_request", "slow_request", "body_too_large", "unsupported_encoding", *SERVED)
QUEUED: Final = (*READ, "overloaded", "deadline_exceeded")
DECODED: Final = (*QUEUED, "image_too_large", "unsupported_format", "undecodable_image", "too_costly")


class Endpoint(msgspec.Struct, frozen=True):
    """One method of one path: its handler and its documentation.

    ``flags`` are boolean query parameters with their descriptions; ``problems`` are codes of `serving.errors`, without
    those of `serving.http.auth` and `serving.http.origins`; ``commands`` call it on localhost:8000.
    """

    method: Literal["GET", "POST"]
    path: str
    handler: Callable[[Request], Awaitable[Response]]
    summary: str
    gives: Body
    commands: tuple[str, ...]
    description: str = ""
    flags: Mapping[str, str] = {}
    takes: Body = {}
    problems: tuple[str, ...] = ()

    @property
    def route(self) -> Route:
        """Make Starlette's route."""
        return Route(self.path, self.handler, methods=[self.method])


ENDPOINTS: Final = (
    Endpoint(
        "POST",
        "/predict",
        routes.predict,
        "Classify one picture, sent as the field `file` of a multipart form or as the body",
        flags=EXPLAIN,
        takes=UPLOAD,
        gives={JSON: examples.PREDICTION},
        problems=DECODED,
        commands=(
            "curl -F file=@tests/cat.jpg localhost:8000/predict",
            'curl -F file=@tests/cat.jpg "localhost:8000/predict?explain=true"',
            "curl -H 'Content-Type: image/jpeg' --data-binary @tests/cat.jpg localhost:8000/predict",
        ),
    ),
    Endpoint(
        "POST",
        "/predict/batch",
        routes.predict_batch,
        "Classify up to 64 pictures, sent as fields `file` of a multipart form or as base64 in JSON",
        description="Results are in the order of the pictures. A bad picture has an error as its result.",
        flags=EXPLAIN,
        takes={JSON: examples.BATCH, "multipart/form-data": PicturesForm},
        gives={JSON: examples.RESULTS},
        problems=QUEUED,
        commands=(
            "curl -F file=@tests/cat.jpg -F file=@tests/cat.jpg localhost:8000/predict/batch",
            """printf '{"images": [{"id": "chelsea", "data": "%s"}]}' "$(base64 -w0 tests/cat.jpg)" |
  curl -d @- localhost:8000/predict/batch""",
        ),
    ),
    Endpoint(
        "POST",
        "/explain",
        routes.explain,
        "Draw the evidence over one picture, red for cats and blue for dogs; answers a PNG",
        description="Stronger colours are stronger evidence, relative to the strongest in the picture. The numbers are "
        "those of `/predict?explain=true`.",
        takes=UPLOAD,
        gives={"image/png": None},
        problems=DECODED,
        commands=("curl -F file=@tests/cat.jpg localhost:8000/explain -o why.png",),
    ),
    Endpoint(
        "POST",
        "/feedback",
        routes.feedback,
        "Report what the picture of an earlier prediction really showed",
        description="Where the picture shows one animal and the verdict was not `unsure`, it counts towards the live "
        "accuracy. A second feedback for a prediction replaces the first.",
        takes={JSON: FeedbackRequest(id=examples.PREDICTION.id, label="dogs")},
        gives={
            JSON: FeedbackResponse(id=examples.PREDICTION.id, label="dogs", predicted_label="cats", correct=False),
        },
        problems=(*READ, "unknown_prediction"),
        commands=(
            """id=$(curl -F file=@tests/cat.jpg localhost:8000/predict | sed 's/^{"id":"//; s/".*//')
curl -d '{"id": "'$id'", "label": "cats"}' localhost:8000/feedback""",
        ),
    ),
    Endpoint(
        "GET",
        "/health",
        routes.health,
        "Check that the process is alive",
        gives={JSON: Health()},
        commands=("curl localhost:8000/health",),
    ),
    Endpoint(
        "GET",
        "/health/ready",
        routes.ready,
        "Check that the service can take requests",
        gives={JSON: Ready(model=examples.PREDICTION.model)},
        problems=SERVED,
        commands=("curl localhost:8000/health/ready",),
    ),
    Endpoint(
        "GET",
        "/model",
        routes.model,
        "Describe the model in service: its contract and its file",
        gives={JSON: examples.MODEL},
        problems=SERVED,
        commands=("curl localhost:8000/model",),
    ),
    Endpoint(
        "GET",
        "/v2",
        inference.server_metadata,
        "Describe the server, in the Open Inference Protocol",
        gives={JSON: ServerMetadata(version=__version__)},
        commands=("curl localhost:8000/v2",),
    ),
    Endpoint(
        "GET",
        "/v2/health/live",
        inference.server_live,
        "Check that the process is alive",
        gives={JSON: Live()},
        commands=("curl localhost:8000/v2/health/live",),
    ),
    Endpoint(
        "GET",
        "/v2/health/ready",
        inference.server_ready,
        "Check that the service can take requests",
        gives={JSON: ReadyToInfer()},
        problems=SERVED,
        commands=("curl localhost:8000/v2/health/ready",),
    ),
    Endpoint(
        "GET",
        "/v2/models/cats-dogs",
        inference.model_metadata,
        "Describe the model's inputs and outputs",
        gives={JSON: ModelMetadata()},
        commands=("curl localhost:8000/v2/models/cats-dogs",),
    ),
    Endpoint(
        "GET",
        "/v2/models/cats-dogs/ready",
        inference.model_ready,
        "Check that the model can take requests",
        gives={JSON: ReadyToInfer()},
        problems=SERVED,
        commands=("curl localhost:8000/v2/models/cats-dogs/ready",),
    ),
    Endpoint(
        "POST",
        "/v2/models/cats-dogs/infer",
        inference.infer,
        "Classify up to 64 pictures, files or pixels, in the Open Inference Protocol",
        description="A bad picture has the whole request refused. With the header `Inference-Header-Content-Length`, "
        "the input's data is behind the JSON (the binary tensor data extension).",
        takes={JSON: examples.INFER, "application/octet-stream": None},
        gives={JSON: examples.INFERRED, "application/octet-stream": None},
        problems=DECODED,
        commands=(
            """printf '{"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": ["%s"]}]}' \\
  "$(base64 -w0 tests/cat.jpg)" | curl -d @- localhost:8000/v2/models/cats-dogs/infer""",
        ),
    ),
    Endpoint(
        "GET",
        "/metrics",
        routes.metrics,
        "Read the metrics in Prometheus's text format",
        gives={"text/plain": examples.METRICS},
        commands=("curl localhost:8000/metrics",),
    ),
)


def table(endpoints: Iterable[Endpoint] = ENDPOINTS) -> str:
    """Make the route table of the documents, in Markdown."""
    rows = [f"| `{endpoint.method} {endpoint.path}` | {endpoint.summary} |\n" for endpoint in endpoints]
    return "| route | what |\n|---|---|\n" + "".join(rows)
