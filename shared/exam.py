"""The exam: golden pictures that travel inside a model file, with the answers training saw.

A service sits it at start and at every model change, before it says that it is ready. It goes from bytes to outputs, so
it notices another decoder, another channel order, a wrong graph and a processor that computes int8 differently. Each
question is answered by the first look and by the second.
"""

from typing import Final

import numpy as np

from shared.contract import Exam, Question, SecondLook
from shared.pixels import SIZE, WHOLE, Box, Pixels, decode
from shared.second_look import Network, Outputs, Photo, closer
from shared.spec import RefusedImageError

__all__ = ["Exam", "Question", "sit", "spread", "write"]

NOISES: Final = 5  # draws of the noise that a tolerance must leave room for


def write(pictures: dict[str, bytes], network: Network, how: SecondLook, tolerances: dict[str, float]) -> Exam:
    """Record the answers of ``network`` for ``pictures`` (name to file bytes), each with its own tolerance."""
    questions = []
    for name, picture in pictures.items():
        first, second = _answers(decode(picture), network, how)
        questions.append(
            Question(
                name=name,
                picture=picture,
                probabilities=tuple(first.probabilities[0].tolist()),
                evidence=tuple(first.evidence[0].ravel().tolist()),
                familiarity=float(first.familiarity[0]),
                closer=(float(second.probabilities[0, 1]), float(second.familiarity[0])),
                tolerance=tolerances[name],
            )
        )
    return Exam(questions=tuple(questions), tolerance=max(tolerances.values(), default=0.0))


def sit(exam: Exam, network: Network, how: SecondLook) -> list[str]:
    """Sit the exam; returns one line per failed question, so an empty list is a pass.

    An exam without questions proves nothing and counts as failed.
    """
    if not exam.questions:
        return ["the exam has no questions"]
    failures = (_failure(question, exam.tolerance, network, how) for question in exam.questions)
    return [failure for failure in failures if failure]


def spread(picture: bytes, network: Network, how: SecondLook, others: dict[str, Network]) -> dict[str, float]:
    """How far answers of other machines lie from ``network``'s, as the exam measures it.

    Args:
        picture: a file.
        network: as it is computed here.
        how: the second look.
        others: other ways to compute it, by their names.

    Returns:
        The largest difference by way; first that of a decoder which is one level off at a tenth of the values.
    """
    photo = decode(picture)
    here = _answers(photo, network, how)
    noisy = [_difference(_answers(_Noisy(photo, seed), network, how), here) for seed in range(NOISES)]
    found = {"one level of noise in a tenth of the values": max(noisy)}
    return found | {name: _difference(_answers(photo, other, how), here) for name, other in others.items()}


class _Noisy:
    """A picture whose decoder is one level off at a tenth of the values."""

    def __init__(self, photo: Photo, seed: int) -> None:
        self._photo = photo
        self._random = np.random.default_rng(seed)

    def square(self, size: int = SIZE, box: Box = WHOLE) -> Pixels:
        picture = self._photo.square(size, box)
        noise = self._random.integers(-1, 2, picture.shape) * (self._random.random(picture.shape) < 0.1)
        noisy: Pixels = np.clip(picture + noise, 0, 255).astype(np.uint8)
        return noisy


def _answers(photo: Photo, network: Network, how: SecondLook) -> tuple[Outputs, Outputs]:
    """The first look's answer, and the second's."""
    first = network.first(photo.square()[np.newaxis])
    return first, closer(photo, first, network, how)


def _differences(one: tuple[Outputs, Outputs], other: tuple[Outputs, Outputs]) -> dict[str, float]:
    """Difference of two answers to one picture, by output; see :class:`Exam` for how each is measured."""
    scale = max(1.0, float(np.abs(other[0].evidence).max()))
    found = {"evidence": float(np.abs(one[0].evidence - other[0].evidence).mean()) / scale}
    for which, mine, golden in zip(("", "second look's "), one, other, strict=True):
        found[f"{which}probabilities"] = float(np.abs(mine.probabilities - golden.probabilities).max())
        found[f"{which}familiarity"] = float(np.abs(mine.familiarity - golden.familiarity).max())
    return found


def _difference(one: tuple[Outputs, Outputs], other: tuple[Outputs, Outputs]) -> float:
    return max(_differences(one, other).values())


def _failure(question: Question, tolerance: float, network: Network, how: SecondLook) -> str | None:
    try:
        answers = _answers(decode(question.picture), network, how)
    except RefusedImageError as error:
        return f"{question.name}: {error}"
    evidence = np.array(question.evidence, np.float32).reshape(answers[0].evidence.shape)
    dogs, familiar = question.closer
    golden = (
        Outputs(np.array([question.probabilities], np.float32), evidence, np.array([question.familiarity], np.float32)),
        Outputs(np.array([[1 - dogs, dogs]], np.float32), evidence, np.array([familiar], np.float32)),
    )
    tolerance = tolerance if question.tolerance is None else question.tolerance
    differences = _differences(answers, golden)
    # "not <=" rather than ">": a NaN must fail.
    wrong = [f"{what} off by {amount:.3g}" for what, amount in differences.items() if not amount <= tolerance]
    return f"{question.name}: {', '.join(wrong)} (tolerance {tolerance:g})" if wrong else None
