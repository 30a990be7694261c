"""What `/docs` shows of each operation: the README's commands, and what goes in and comes out."""

from typing import Any, Final

import msgspec

from serving import errors


def problem(code: str) -> dict[str, Any]:
    """Make an error of the kind, as it is answered."""
    detail = errors.CODES[code][1].lower()
    made: dict[str, Any] = msgspec.to_builtins(errors.problem(code, detail, "2c9d…"))
    return made


PREDICTION: Final[dict[str, Any]] = {
    "id": "8f0c…",
    "predicted_label": "cats",
    "probabilities": {"cats": 0.9999, "dogs": 0.0001},
    "verdict": "cats",
    "unsure_because": None,
    "familiarity": 0.95,
    "model": "2026.11.27-lite0-int8",
}
# One red pixel, so that trying it out in /docs is answered.
PICTURE: Final = "R0lGODlhAQABAIAAAMhVPQAAACwAAAAAAQABAAACAkQBADs="
MODEL: Final[dict[str, Any]] = {
    "schema": 1,
    "version": PREDICTION["model"],
    "architecture": "efficientnet_lite0",
    "precision": "int8",
    "classes": ["cats", "dogs"],
    "pixels": "63907562…",
    "temperature": 1.072,
    "unsure": {"close_call": 0.793, "unfamiliar": 0.511},
    "provenance": {
        "dataset_digest": "a8322504…",
        "split_digest": "06b8cacb…",
        "git_commit": "3c08a1f1…",
        "mlflow_run_id": "b4ef1569…",
        "created": "2026-11-27T08:23:15+00:00",
        "registry": "cats-dogs/3",
    },
    "reference": {
        "confidence": {"edges": [0.5, 0.9, 1.0], "counts": [24, 1259]},
        "brightness": {"edges": [0.0, 0.5, 1.0], "counts": [863, 420]},
        "familiarity": {"edges": [0.0, 0.5, 1.0], "counts": [26, 1257]},
    },
    "exam": {"questions": [], "tolerance": 0.02},
    "test": {
        "pictures": 1306,
        "accuracy": {"value": 0.9946, "low": 0.989, "high": 0.9974},
        "log_loss": 0.0224,
        "confusion": [[674, 6], [1, 625]],
        "audited": {"value": 0.9962, "low": 0.9911, "high": 0.9984},
    },
    "file": "cats-dogs.int8.onnx",
    "fallback": None,
}
METRICS: Final = """\
# HELP catsdogs_predictions_total Predictions by label and verdict.
# TYPE catsdogs_predictions_total counter
catsdogs_predictions_total{label="cats",verdict="cats"} 1
"""

# By operation. The README has the same commands, word for word.
COMMANDS: Final[dict[str, tuple[str, ...]]] = {
    "predict": (
        "curl -F file=@tests/cat.jpg localhost:8000/predict",
        'curl -F file=@tests/cat.jpg "localhost:8000/predict?explain=true"',
    ),
    "predictBatch": (
        """printf '{"images": [{"id": "chelsea", "data": "%s"}]}' "$(base64 -w0 tests/cat.jpg)" |
  curl -d @- localhost:8000/predict/batch""",
    ),
    "explain": ("curl -F file=@tests/cat.jpg localhost:8000/explain -o why.png",),
    "feedback": (
        """id=$(curl -F file=@tests/cat.jpg localhost:8000/predict | sed 's/^{"id":"//; s/".*//')
curl -d '{"id": "'$id'", "label": "cats"}' localhost:8000/feedback""",
    ),
    "health": ("curl localhost:8000/health",),
    "ready": ("curl localhost:8000/health/ready",),
    "model": ("curl localhost:8000/model",),
    "metrics": ("curl localhost:8000/metrics",),
}
REQUESTS: Final[dict[str, Any]] = {
    "predictBatch": {"images": [{"id": "chelsea", "data": PICTURE}, {"id": "notes", "data": "SSBhbSBhIGNhdA=="}]},
    "feedback": {"id": PREDICTION["id"], "label": "dogs"},
}
ANSWERS: Final[dict[str, Any]] = {
    "predict": PREDICTION,
    "predictBatch": {
        "results": [{**PREDICTION, "id": "chelsea"}, {"id": "notes", "error": problem("unsupported_format")}],
        "model": PREDICTION["model"],
    },
    "feedback": {"id": PREDICTION["id"], "label": "dogs", "predicted_label": "cats", "correct": False},
    "health": {"status": "ok"},
    "ready": {"status": "ready", "model": PREDICTION["model"]},
    "model": MODEL,
    "metrics": METRICS,
}


def add(operation: dict[str, Any]) -> None:
    """Put the examples into one operation of the OpenAPI document."""
    name = operation["operationId"]
    commands = "".join(f"\n\n```bash\n{command}\n```" for command in COMMANDS[name])
    operation["description"] = (operation.get("description", "") + commands).strip()
    if name in REQUESTS:
        _set(operation["requestBody"], REQUESTS[name])
    # A drawing is no JSON to show.
    if name in ANSWERS:
        _set(operation["responses"]["200"], ANSWERS[name])


def _set(message: dict[str, Any], example: object) -> None:
    (content,) = message["content"].values()
    content["example"] = example
