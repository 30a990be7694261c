"""The exam: golden pictures that travel inside a model file, with the answers training saw.

A service sits it at start and at every model change, before it says that it is ready. It goes from bytes to outputs, so
it notices another decoder, another channel order, a wrong graph and a processor that computes int8 differently.
"""

from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from shared.contract import Exam, Question
from shared.pixels import Pixels, pixels
from shared.spec import RefusedImageError

__all__ = ["Exam", "Outputs", "Question", "Run", "sit", "spread", "write"]


class Outputs(NamedTuple):
    """What a model answers for n pictures."""

    probabilities: npt.NDArray[np.float32]  # [n, 2], in the order of the contract's classes
    evidence: npt.NDArray[np.float32]  # [n, 7, 7], positive for dogs
    familiarity: npt.NDArray[np.float32]  # [n], 0..1


NOISES: Final = 5  # draws of the noise that a tolerance must leave room for
Run = Callable[[Pixels], Outputs]  # takes uint8 [n, 224, 224, 3]


def write(pictures: dict[str, bytes], run: Run, tolerances: dict[str, float]) -> Exam:
    """Record the answers of ``run`` for each of ``pictures`` (name to file bytes), each with its own tolerance."""
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
                tolerance=tolerances[name],
            )
        )
    return Exam(questions=tuple(questions), tolerance=max(tolerances.values(), default=0.0))


def sit(exam: Exam, run: Run) -> list[str]:
    """Sit the exam; returns one line per failed question, so an empty list is a pass.

    An exam without questions proves nothing and counts as failed.
    """
    if not exam.questions:
        return ["the exam has no questions"]
    failures = (_failure(question, exam.tolerance, run) for question in exam.questions)
    return [failure for failure in failures if failure]


def spread(picture: bytes, run: Run, others: dict[str, Run]) -> dict[str, float]:
    """How far answers of other machines lie from ``run``'s, as the exam measures it.

    Args:
        picture: a file.
        run: the network as it is computed here.
        others: other ways to compute it, by their names.

    Returns:
        The largest difference by way; first that of a decoder which is one level off at a tenth of the values.
    """
    seen = pixels(picture)[np.newaxis]
    here = run(seen)
    noisy = [max(_differences(run(_noisy(seen, seed)), here).values()) for seed in range(NOISES)]
    found = {"one level of noise in a tenth of the values": max(noisy)}
    return found | {name: max(_differences(other(seen), here).values()) for name, other in others.items()}


def _noisy(picture: Pixels, seed: int) -> Pixels:
    random = np.random.default_rng(seed)
    noise = random.integers(-1, 2, picture.shape) * (random.random(picture.shape) < 0.1)
    noisy: Pixels = np.clip(picture + noise, 0, 255).astype(np.uint8)
    return noisy


def _differences(one: Outputs, other: Outputs) -> dict[str, float]:
    """Difference of two answers to one picture, by output; see :class:`Exam` for how each is measured."""
    scale = max(1.0, float(np.abs(other.evidence).max()))
    return {
        "probabilities": float(np.abs(one.probabilities - other.probabilities).max()),
        "evidence": float(np.abs(one.evidence - other.evidence).mean()) / scale,
        "familiarity": float(np.abs(one.familiarity - other.familiarity).max()),
    }


def _failure(question: Question, tolerance: float, run: Run) -> str | None:
    try:
        outputs = run(pixels(question.picture)[np.newaxis])
    except RefusedImageError as error:
        return f"{question.name}: {error}"
    golden = Outputs(
        np.array([question.probabilities], np.float32),
        np.array(question.evidence, np.float32).reshape(outputs.evidence.shape),
        np.array([question.familiarity], np.float32),
    )
    tolerance = tolerance if question.tolerance is None else question.tolerance
    differences = _differences(outputs, golden)
    # "not <=" rather than ">": a NaN must fail.
    wrong = [f"{what} off by {amount:.3g}" for what, amount in differences.items() if not amount <= tolerance]
    return f"{question.name}: {', '.join(wrong)} (tolerance {tolerance:g})" if wrong else None
