"""The model file as every baseline uses it: one session, made once, and an answer in plain numbers."""

import os
from typing import Any, Final

import numpy as np
import onnxruntime

from shared import contract
from shared.contract import CLASSES
from shared.pixels import Photo, Pixels, decode
from shared.second_look import Outputs, closer, inputs, stands

MODEL: Final = "BENCH_MODEL"
# Threads of one run of the network; 0 leaves it to onnxruntime, which takes one per core.
THREADS: Final = "BENCH_THREADS"


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
        self._how = contract.loads(self._session.get_modelmeta().custom_metadata_map).second_look

    def first(self, pictures: Pixels) -> Outputs:
        """The first look, at any number of pictures."""
        return Outputs(*self._session.run(Outputs._fields, inputs(pictures, again=False)))

    def closer(self, pictures: Pixels) -> Outputs:
        """The second look."""
        return Outputs(*self._session.run(Outputs._fields, inputs(pictures, again=True)))

    def answer(self, data: bytes) -> dict[str, Any]:
        """Decode one picture file and look at it, for all that the service answers with.

        Raises:
            RefusedImageError: the file is no picture that can be decoded.
        """
        return self.answers([data])[0]

    def answers(self, files: list[bytes]) -> list[dict[str, Any]]:
        """Decode picture files and look at all of them at once, and again at those that need it.

        Raises:
            RefusedImageError: one of them is no picture that can be decoded.
        """
        photos = [decode(data) for data in files]
        first = self.first(np.stack([photo.square() for photo in photos]))
        rows = [Outputs(*(output[place : place + 1] for output in first)) for place in range(len(photos))]
        return [self._said(photo, row) for photo, row in zip(photos, rows, strict=True)]

    def _said(self, photo: Photo, first: Outputs) -> dict[str, Any]:
        outputs = first if stands(first, self._how) else closer(photo, first, self, self._how)
        (probabilities,) = outputs.probabilities
        return {
            "predicted_label": CLASSES[int(probabilities.argmax())],
            "probabilities": dict(zip(CLASSES, map(float, probabilities), strict=True)),
            "familiarity": float(outputs.familiarity[0]),
        }
