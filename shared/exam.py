"""The exam: golden pictures that travel inside a model file, with the answers training saw.

A service sits it at start and at every model change, before it says that it is ready. It goes from bytes to outputs, so
it notices another decoder, another channel order, a wrong graph and a processor that computes int8 differently.
"""

from collections.abc import Callable
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from shared.pixels import Pixels, RefusedImageError, pixels


class Outputs(NamedTuple):
    """What a model answers for n pictures."""

    probabilities: npt.NDArray[np.float32]  # [n, 2], in the order of the contract's classes
    evidence: npt.NDArray[np.float32]  # [n, 7, 7], positive for dogs
    familiarity: npt.NDArray[np.float32]  # [n], 0..1


Run = Callable[[Pixels], Outputs]  # takes uint8 [n, 224, 224, 3]


class Question(msgspec.Struct, frozen=True):
    """One golden picture (a whole file, base64 in JSON) and the outputs that training saw for it."""

    name: str
    picture: bytes
    probabilities: tuple[float, ...]
    evidence: tuple[float, ...]  # 49 values, row by row
    familiarity: float


class Exam(msgspec.Struct, frozen=True):
    """All questions, and how far an answer may lie from the golden one.

    ``tolerance`` bounds the largest difference of probabilities and familiarity (both 0..1), and the mean difference of
    the evidence, relative to the picture's largest. (Single places of the map swing by a third for noise of one level.)
    """

    questions: tuple[Question, ...]
    tolerance: float


def write(pictures: dict[str, bytes], run: Run, tolerance: float) -> Exam:
    """Record the answers of ``run`` for each of ``pictures`` (name to file bytes)."""
    questions = []
    for name, picture in pictures.items():
        outputs = run(pixels(picture)[np.newaxis])
        questions.append(
            Question(
                name=name,
                picture=picture,
                probabilities=tuple(outputs.probabilities[0].tolist()),
                evidence=tuple(outputs.evidence[0].ravel().tolist()),
                familiarity=float(outputs.familiarity[0]),
            )
        )
    return Exam(questions=tuple(questions), tolerance=tolerance)


def sit(exam: Exam, run: Run) -> list[str]:
    """Sit the exam; returns one line per failed question, so an empty list is a pass.

    An exam without questions proves nothing and counts as failed.
    """
    if not exam.questions:
        return ["the exam has no questions"]
    failures = (_failure(question, exam.tolerance, run) for question in exam.questions)
    return [failure for failure in failures if failure]


def _failure(question: Question, tolerance: float, run: Run) -> str | None:
    try:
        outputs = run(pixels(question.picture)[np.newaxis])
    except RefusedImageError as error:
        return f"{question.name}: {error}"
    scale = max(1.0, float(np.abs(question.evidence).max()))
    differences = {
        "probabilities": np.abs(outputs.probabilities[0] - question.probabilities).max(),
        "evidence": np.abs(outputs.evidence[0].ravel() - question.evidence).mean() / scale,
        "familiarity": abs(float(outputs.familiarity[0]) - question.familiarity),
    }
    # "not <=" rather than ">": a NaN must fail.
    wrong = [f"{what} off by {amount:.3g}" for what, amount in differences.items() if not amount <= tolerance]
    return f"{question.name}: {', '.join(wrong)} (tolerance {tolerance:g})" if wrong else None
