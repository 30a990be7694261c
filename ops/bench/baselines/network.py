"""The model file as every baseline uses it: one session, made once, and an answer in plain numbers."""

import os
from typing import Any, Final

import numpy as np
import onnxruntime

from shared.pixels import pixels

MODEL: Final = "BENCH_MODEL"
# Threads of one run of the network; 0 leaves it to onnxruntime, which takes one per core.
THREADS: Final = "BENCH_THREADS"
OUTPUTS: Final = ("probabilities", "evidence", "familiarity")
CLASSES: Final = ("cats", "dogs")


class Network:
    """An onnxruntime session; any number of threads may ask it at once."""

    def __init__(self, model: str | None = None, threads: int | None = None) -> None:
        """Load the file; the defaults come from the environment."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(os.environ.get(THREADS, "1")) if threads is None else threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Threads that spin while they wait take the cores from the server around them.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(
            model or os.environ[MODEL], options, providers=["CPUExecutionProvider"]
        )

    def run(self, data: bytes) -> list[Any]:
        """Decode one picture file and run the network on it, and no more."""
        outputs: list[Any] = self._session.run(OUTPUTS, {"image": pixels(data)[np.newaxis]})
        return outputs

    def answer(self, data: bytes) -> dict[str, Any]:
        """Decode one picture file and run the network on it, for all that the service answers with.

        Raises:
            RefusedImageError: the file is no picture that can be decoded.
        """
        return self.answers([data])[0]

    def answers(self, files: list[bytes]) -> list[dict[str, Any]]:
        """Decode picture files and run the network on all of them at once.

        Raises:
            RefusedImageError: one of them is no picture that can be decoded.
        """
        probabilities, _, familiarity = self._session.run(
            OUTPUTS, {"image": np.stack([pixels(data) for data in files])}
        )
        return [
            {
                "predicted_label": CLASSES[int(row.argmax())],
                "probabilities": dict(zip(CLASSES, map(float, row), strict=True)),
                "familiarity": float(familiar),
            }
            for row, familiar in zip(probabilities, familiarity, strict=True)
        ]
