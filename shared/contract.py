"""What a model file says about itself: one JSON document in the ONNX metadata, typed here for both sides."""

from collections.abc import Sequence
from typing import Annotated, Final, Literal, NamedTuple

import msgspec
from msgspec import UNSET, Meta, UnsetType

from shared import spec
from shared.intervals import Interval

METADATA_KEY: Final = "cats_dogs_contract"
SCHEMA: Final = 2
CLASSES: Final = ("cats", "dogs")

Label = Literal["cats", "dogs"]
# What a picture shows, as a person tells it.
Actual = Literal["cats", "dogs", "neither", "both"]
Precision = Literal["fp32", "int8"]


# What becomes a label of metrics, a path or a line of a log must not break out of it.
Name = Annotated[str, Meta(pattern=r"^(?!.*\n)[A-Za-z0-9][A-Za-z0-9._+-]{0,99}$")]


class ContractError(ValueError):
    """A file whose contract is missing, unreadable, or not one this code can keep."""


class Unsure(msgspec.Struct, frozen=True):
    """When not to guess: below either, the verdict is ``unsure``.

    ``close_call`` is held against the larger probability, ``unfamiliar`` against the familiarity.
    """

    close_call: float
    unfamiliar: float


class SecondLook(msgspec.Struct, frozen=True):
    """When to look again, and at what; see :mod:`shared.second_look`.

    The first answer stands where the larger probability is at least ``sure`` and the familiarity at least ``familiar``.
    ``side`` is what the closer network sees, in pixels, and ``crops`` the shares of the picture's sides that it looks
    at, 1 being the whole picture. Its log-odds are divided by ``temperature`` in the graph.
    """

    sure: float
    familiar: float
    side: Annotated[int, Meta(ge=32, le=1024)]
    crops: Annotated[tuple[Annotated[float, Meta(gt=0, le=1)], ...], Meta(min_length=1, max_length=8)]
    temperature: float


class Provenance(msgspec.Struct, frozen=True):
    """Where a model came from. Digests are SHA-256 in hexadecimal, ``created`` is ISO 8601 in UTC.

    ``registry`` is the registered model and its version, such as ``cats-dogs/3``; None until ``promote`` ships it.
    """

    dataset_digest: str
    split_digest: str
    git_commit: str
    mlflow_run_id: str
    created: str
    registry: str | None = None


class TestMetrics(msgspec.Struct, frozen=True):
    """Figures on the test photographs; ``confusion[true][predicted]``, in the order of the classes.

    ``audited`` is the accuracy once wrong labels are corrected, and photos of both animals or none left out;
    ``when_answered`` that of the photos whose verdict is not ``unsure``, which feedback in production is compared with.
    """

    __test__ = False  # a noun of the field, not a class of pytest's

    pictures: int
    accuracy: Interval
    log_loss: float
    confusion: tuple[tuple[int, int], tuple[int, int]]
    audited: Interval | None = None
    when_answered: Interval | None = None


class Histogram(msgspec.Struct, frozen=True):
    """Counts between ascending ``edges`` (one more than counts): what a signal looked like on the validation set."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]


class Reference(msgspec.Struct, frozen=True):
    """Reference distributions for drift: larger probability, mean pixel value in 0..1, and familiarity."""

    confidence: Histogram
    brightness: Histogram
    familiarity: Histogram


class Question(msgspec.Struct, frozen=True):
    """One golden picture (a whole file, base64 in JSON) and the outputs that training saw for it.

    ``tolerance`` is the exam's where it is None; what is plainly a cat is held to less than what is neither animal.
    """

    name: str
    picture: bytes
    probabilities: tuple[float, ...]
    evidence: tuple[float, ...]  # 49 values, row by row
    familiarity: float
    closer: tuple[float, float]  # the second look's probability of dogs, and its familiarity
    tolerance: float | None = None


class Exam(msgspec.Struct, frozen=True):
    """All questions, and how far an answer may lie from the golden one.

    ``tolerance`` bounds, where a question has none of its own, the largest difference of probabilities and familiarity
    (both 0..1), and the mean difference of the evidence, relative to the picture's largest. (Single places of the map
    swing by a third for noise of one level.)
    """

    questions: tuple[Question, ...]
    tolerance: float


class Verdict(NamedTuple):
    """The answer for one picture: ``verdict`` is ``unsure`` exactly when ``unsure_because`` says why."""

    label: Label
    verdict: Literal["cats", "dogs", "unsure"]
    unsure_because: Literal["close_call", "unfamiliar"] | None


class Contract(msgspec.Struct, frozen=True, kw_only=True):
    """The promise of a model file. ``test`` is None until ``evaluate`` has measured the file.

    ``production`` and ``hard`` are absent where there were no such photos: of what users sent, those kept by chance,
    and those kept because an answer was unsure or disputed, all labelled by a person.
    """

    schema: int = SCHEMA
    version: Name
    architecture: Name
    precision: Precision
    classes: tuple[str, str] = CLASSES
    pixels: str = spec.DIGEST
    temperature: float
    second_look: SecondLook
    unsure: Unsure
    provenance: Provenance
    reference: Reference
    exam: Exam
    test: TestMetrics | None = None
    production: TestMetrics | UnsetType = UNSET
    hard: TestMetrics | UnsetType = UNSET

    def judge(self, probabilities: Sequence[float], familiarity: float) -> Verdict:
        """Turn one picture's outputs into a verdict.

        Args:
            probabilities: two, calibrated, in the order of ``classes``.
            familiarity: 0..1, low for what training never saw.
        """
        best = int(probabilities[1] > probabilities[0])
        label: Label = "dogs" if best else "cats"
        if familiarity < self.unsure.unfamiliar:
            return Verdict(label, "unsure", "unfamiliar")
        if float(probabilities[best]) < self.unsure.close_call:
            return Verdict(label, "unsure", "close_call")
        return Verdict(label, label, None)


class _Schema(msgspec.Struct):
    schema: int


def dumps(contract: Contract) -> str:
    """Write the JSON document that goes into the file's metadata under ``METADATA_KEY``."""
    return msgspec.json.encode(contract).decode()


def loads(metadata: dict[str, str]) -> Contract:
    """Read and check the contract in a file's metadata.

    Raises:
        ContractError: it is missing, malformed, of another schema, for other classes or made for other pixels.
    """
    text = metadata.get(METADATA_KEY)
    if text is None:
        raise ContractError("the file carries no contract: it was not made by `catsdogs export`")
    try:
        # First, since a contract of another schema may have other fields.
        schema = msgspec.json.decode(text, type=_Schema).schema
        if schema != SCHEMA:
            raise ContractError(f"its contract has schema {schema}; this service reads {SCHEMA}")
        contract = msgspec.json.decode(text, type=Contract)
    except msgspec.MsgspecError as error:
        raise ContractError(f"its contract cannot be read: {error}") from error
    if contract.classes != CLASSES:
        raise ContractError(f"it tells {contract.classes} apart, not {CLASSES}")
    if contract.pixels != spec.DIGEST:
        raise ContractError("it was trained on pixels made by another procedure than this service's")
    return contract
