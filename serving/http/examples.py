"""Sample documents for `/docs`."""

import base64
from typing import Final

import msgspec

from serving import inference, messages
from serving.errors import CODES, problem


def error(code: str) -> messages.Problem:
    """Make an error of the kind, as it is answered."""
    return problem(code, CODES[code][1], "2c9d…")


PREDICTION: Final = messages.Prediction(
    id="8f0c…",
    predicted_label="cats",
    probabilities=messages.Probabilities(cats=0.99995, dogs=0.00005),
    verdict="cats",
    unsure_because=None,
    familiarity=0.99,
    model="2026.11.30-lite0-int8-c1b87386",
)
# One red pixel, so that "Try it out" in /docs gets an answer.
PICTURE: Final = base64.b64decode("R0lGODlhAQABAIAAAMhVPQAAACwAAAAAAQABAAACAkQBADs=")
BATCH: Final = messages.BatchRequest(
    [messages.BatchImage(id="chelsea", data=PICTURE), messages.BatchImage(id="notes", data=b"I am a cat")]
)
RESULTS: Final = messages.BatchResponse(
    [
        msgspec.structs.replace(PREDICTION, client_id="chelsea"),
        messages.BatchError(client_id="notes", error=error("unsupported_format")),
    ],
    model=PREDICTION.model,
)
INFER: Final = inference.InferRequest(
    [inference.InferInput(inference.INPUT, "BYTES", [1], [base64.b64encode(PICTURE).decode()])], id="chelsea"
)
INFERRED: Final = inference.InferResponse(
    model_version=PREDICTION.model,
    id="chelsea",
    outputs=[
        inference.Tensor(name="probabilities", datatype="FP32", shape=[1, 2], data=[0.99995, 0.00005]),
        inference.Tensor(name="familiarity", datatype="FP32", shape=[1], data=[0.99]),
        inference.Tensor(name="verdict", datatype="BYTES", shape=[1], data=["cats"]),
    ],
)
MODEL: Final = msgspec.convert(
    {
        "version": PREDICTION.model,
        "architecture": "efficientnet_lite0",
        "precision": "int8",
        "pixels": "63907562…",
        "temperature": 1.072,
        "second_look": {
            "sure": 0.97,
            "familiar": 0.6,
            "side": 260,
            "crops": [1.0, 0.6, 0.45],
            "temperature": 1.031,
        },
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
    },
    messages.ModelInService,
)
METRICS: Final = """\
# HELP catsdogs_predictions_total Predictions by label and verdict.
# TYPE catsdogs_predictions_total counter
catsdogs_predictions_total{label="cats",verdict="cats"} 1
"""
