from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest

from serving.model.session import Model, load
from shared import exam
from shared.exam import Exam
from shared.pixels import Pixels
from shared.second_look import Network, Outputs


@pytest.fixture(scope="module")
def model(shipped: Path) -> Model:
    return load(shipped)


def sit(model: Model, network: Network, questions: Exam | None = None) -> list[str]:
    return exam.sit(questions or model.contract.exam, network, model.contract.second_look)


class Other:
    """The networks, with something done to their pictures or answers."""

    def __init__(
        self,
        network: Network,
        pictures: Callable[[Pixels], Pixels] = lambda pictures: pictures,
        first: Callable[[Outputs], Outputs] = lambda outputs: outputs,
        closer: Callable[[Outputs], Outputs] = lambda outputs: outputs,
    ) -> None:
        self._network, self._pictures, self._first, self._closer = network, pictures, first, closer

    def first(self, pictures: Pixels) -> Outputs:
        return self._first(self._network.first(self._pictures(pictures)))

    def closer(self, pictures: Pixels) -> Outputs:
        return self._closer(self._network.closer(self._pictures(pictures)))


def test_the_shipped_model_passes_its_own_exam(model: Model) -> None:
    assert sit(model, model.network) == []


def test_an_exam_without_questions_is_failed(model: Model) -> None:
    assert sit(model, model.network, Exam(questions=(), tolerance=1.0)) != []


@pytest.mark.parametrize(
    "mistake",
    [
        lambda batch: batch[..., ::-1],  # blue, green, red
        lambda batch: batch[:, ::-1],  # upside down
        lambda batch: batch.transpose(0, 2, 1, 3),  # width and height swapped
        lambda batch: batch // 2,  # half as bright
    ],
)
def test_pixels_that_training_never_saw_fail_the_exam(model: Model, mistake: Callable[[Pixels], Pixels]) -> None:
    assert len(sit(model, Other(model.network, mistake))) >= 4


def test_a_decoder_that_is_one_level_off_here_and_there_passes(model: Model) -> None:
    random = np.random.default_rng(1)

    def noisy(batch: Pixels) -> Pixels:
        noise = random.integers(-1, 2, batch.shape) * (random.random(batch.shape) < 0.1)
        changed: Pixels = np.clip(batch + noise, 0, 255).astype(np.uint8)
        return changed

    assert sit(model, Other(model.network, noisy)) == []


def test_outputs_that_are_not_numbers_fail(model: Model) -> None:
    questions = len(model.contract.exam.questions)
    first = Other(model.network, first=lambda outputs: outputs._replace(familiarity=outputs.familiarity * np.nan))
    assert len(sit(model, first)) == questions
    second = Other(model.network, closer=lambda outputs: outputs._replace(familiarity=outputs.familiarity * np.nan))
    assert len(sit(model, second)) == questions


def test_a_second_look_that_answers_otherwise_fails_by_itself(model: Model) -> None:
    failures = sit(
        model,
        Other(model.network, closer=lambda outputs: outputs._replace(probabilities=outputs.probabilities[:, ::-1])),
    )
    assert failures
    assert all("second look's probabilities off by" in failure for failure in failures)
    assert not any(": probabilities" in failure for failure in failures)  # those of the first look


def test_a_picture_that_can_no_longer_be_decoded_fails_by_name(model: Model) -> None:
    golden = model.contract.exam.questions[0]
    broken = msgspec.structs.replace(golden, picture=b"\xff\xd8\xff")
    assert sit(model, model.network, Exam(questions=(broken,), tolerance=0.1))[0].startswith(golden.name)
