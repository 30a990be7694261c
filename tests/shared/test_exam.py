import numpy as np
import pytest

from serving.model.session import Model, load
from shared import exam
from shared.exam import Exam, Outputs
from shared.pixels import Pixels


@pytest.fixture(scope="module")
def model(shipped: "object") -> Model:
    return load(shipped)  # type: ignore[arg-type]


def test_the_shipped_model_passes_its_own_exam(model: Model) -> None:
    assert exam.sit(model.contract.exam, model.run) == []


def test_an_exam_without_questions_is_failed(model: Model) -> None:
    assert exam.sit(Exam(questions=(), tolerance=1.0), model.run) != []


@pytest.mark.parametrize(
    "mistake",
    [
        lambda batch: batch[..., ::-1],  # blue, green, red
        lambda batch: batch[:, ::-1],  # upside down
        lambda batch: batch.transpose(0, 2, 1, 3),  # width and height swapped
        lambda batch: batch // 2,  # half as bright
    ],
)
def test_pixels_that_training_never_saw_fail_the_exam(model: Model, mistake: "object") -> None:
    failures = exam.sit(model.contract.exam, lambda batch: model.run(mistake(batch)))  # type: ignore[operator]
    assert len(failures) >= 4


def test_a_decoder_that_is_one_level_off_here_and_there_passes(model: Model) -> None:
    random = np.random.default_rng(1)
    noise = random.integers(-1, 2, (1, 224, 224, 3)) * (random.random((1, 224, 224, 3)) < 0.1)

    def run(batch: Pixels) -> Outputs:
        return model.run(np.clip(batch + noise, 0, 255).astype(np.uint8))

    assert exam.sit(model.contract.exam, run) == []


def test_outputs_that_are_not_numbers_fail(model: Model) -> None:
    def run(batch: Pixels) -> Outputs:
        outputs = model.run(batch)
        return outputs._replace(familiarity=outputs.familiarity * np.nan)

    assert len(exam.sit(model.contract.exam, run)) == len(model.contract.exam.questions)


def test_a_picture_that_can_no_longer_be_decoded_fails_by_name(model: Model) -> None:
    golden = model.contract.exam.questions[0]
    broken = type(golden)(**{**{f: getattr(golden, f) for f in golden.__struct_fields__}, "picture": b"\xff\xd8\xff"})
    assert exam.sit(Exam(questions=(broken,), tolerance=0.1), model.run)[0].startswith(golden.name)
