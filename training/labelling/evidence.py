"""Where a model looks in a sample."""

import threading
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime

from shared.pixels import Pixels
from shared.second_look import inputs
from training.stage import StageError

SHIPPED: Final = Path(__file__).parents[2] / "serving/models/cats-dogs.int8.onnx"


class Evidence:
    """The evidence of one model file, which is loaded when it is first asked."""

    def __init__(self, model: Path) -> None:
        """Take the file."""
        self._model = model
        self._lock = threading.Lock()
        self._session: Any = None

    def strength(self, picture: Pixels) -> list[list[float]]:
        """How much each of 7×7 places of a uint8 [224, 224, 3] counts, of the strongest one, 0..1.

        Not for which animal: that would give the model's answer away.

        Raises:
            StageError: the file is no model, or cannot be run.
        """
        try:
            with self._lock:
                if self._session is None:
                    data = self._model.read_bytes()
                    self._session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
            (found,) = self._session.run(["evidence"], inputs(picture[np.newaxis], again=False))
        # onnxruntime's error classes have no common base.
        except Exception as error:
            raise StageError(f"{self._model}: not a model that can be run") from error
        strong: list[list[float]] = np.abs(found[0] / (np.abs(found[0]).max() or 1)).tolist()
        return strong
