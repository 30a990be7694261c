"""One picture: bytes to an answer or a drawing. Runs in a lane, or in ``catsdogs predict`` without a server."""

import time
from dataclasses import dataclass

import numpy as np

from serving.messages import Prediction, Probabilities
from serving.model import evidence
from serving.model.session import Model
from shared.contract import Verdict
from shared.exam import Outputs
from shared.pixels import Limits, Pixels, pixels


@dataclass(frozen=True, slots=True)
class Classified:
    """What the model made of one picture, its mean pixel value in 0..1, and the seconds decoding and network took."""

    model: Model
    picture: Pixels
    outputs: Outputs
    verdict: Verdict
    brightness: float
    decode: float
    infer: float

    @property
    def confidence(self) -> float:
        """The larger probability."""
        return float(max(self.outputs.probabilities[0]))

    def message(self, prediction_id: str, *, explain: bool) -> Prediction:
        """Make the answer that is sent, with the evidence map if ``explain``."""
        cats, dogs = self.outputs.probabilities[0]
        prediction = Prediction(
            id=prediction_id,
            predicted_label=self.verdict.label,
            probabilities=Probabilities(cats=_plain(cats), dogs=_plain(dogs)),
            verdict=self.verdict.verdict,
            unsure_because=self.verdict.unsure_because,
            familiarity=_plain(self.outputs.familiarity[0]),
            model=self.model.contract.version,
        )
        if explain:
            prediction.evidence = [[_plain(value) for value in row] for row in self.outputs.evidence[0]]
        return prediction


def classify(model: Model, data: bytes, limits: Limits, alone: bool = False) -> Classified:
    """Decode one picture file and run the network on it, over all cores if it is ``alone``.

    Raises:
        RefusedImageError: the file is no picture that can be decoded within ``limits``.
    """
    started = time.perf_counter()
    picture = pixels(data, limits)
    decoded = time.perf_counter()
    outputs = model.run(picture[np.newaxis], alone=alone)
    done = time.perf_counter()
    verdict = model.contract.judge(outputs.probabilities[0], float(outputs.familiarity[0]))
    brightness = int(picture.sum(dtype=np.uint32)) / (255 * picture.size)  # 27 µs, where mean() takes 70
    return Classified(model, picture, outputs, verdict, brightness, decode=decoded - started, infer=done - decoded)


@dataclass(frozen=True, slots=True)
class Explained:
    """A picture with its evidence drawn over it, as a PNG file, and the seconds that the drawing took."""

    classified: Classified
    png: bytes
    draw: float


def explain(model: Model, data: bytes, limits: Limits, alone: bool = False) -> Explained:
    """Classify one picture file and draw what spoke for which animal.

    Raises:
        RefusedImageError: the file is no picture that can be decoded within ``limits``.
    """
    classified = classify(model, data, limits, alone)
    started = time.perf_counter()
    size = evidence.drawn_size(*evidence.upright_size(data))
    png = evidence.draw(classified.picture, classified.outputs.evidence[0], size)
    return Explained(classified, png, draw=time.perf_counter() - started)


def _plain(value: np.float32) -> float:
    """The shortest decimal that names this float32: 0.9877, where float() would give 0.9876999855041504."""
    return float(str(value))
