"""A model file in service: its session, its contract, and the exam it passed.

An int8 file is rounded for one kind of processor arithmetic and may come out differently on another. So it has the fp32
file beside it, which answers where the int8 file fails its exam.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnxruntime

from shared import contract, exam
from shared.contract import Contract, ContractError
from shared.exam import Outputs, Question
from shared.pixels import Pixels

INPUT = "image"


class ModelRefusedError(Exception):
    """A file that must not answer; the message says why."""


class ModelFailedError(Exception):
    """A model that passed its exam and yet gave no answer for a picture."""


class Model:
    """An onnxruntime session and the contract of its file. Any number of threads may run it at once.

    ``fallback`` says why this file answers rather than the one that was asked for; None if it is that one.
    """

    def __init__(self, path: Path) -> None:
        """Load the file, with one thread per run: lanes are the parallelism.

        Raises:
            ModelRefusedError: it cannot be read, is no ONNX model, or its contract cannot be kept.
        """
        self.path = path
        self.fallback: str | None = None
        try:
            data = path.read_bytes()
        except OSError as error:
            raise ModelRefusedError(f"{path.name}: {error.strerror}") from error
        self._session = _session(path, data, threads=1)
        self._wide: onnxruntime.InferenceSession | None = None
        try:
            self.contract: Contract = contract.loads(self._session.get_modelmeta().custom_metadata_map)
        except ContractError as error:
            raise ModelRefusedError(f"{path.name}: {error}") from error

    def widen(self, threads: int) -> None:
        """Make a second session that spreads one run over ``threads`` cores, for a picture that has them to itself.

        It costs as much memory as the first, and time, so it is made once the service answers.
        """
        if threads > 1:
            wide = _session(self.path, self.path.read_bytes(), threads)
            if wide.get_modelmeta().custom_metadata_map == self._session.get_modelmeta().custom_metadata_map:
                self._wide = wide

    def run(self, batch: Pixels, *, alone: bool = False) -> Outputs:
        """Run the network on uint8 [n, 224, 224, 3]; ``alone``: on all cores, if it can.

        Raises:
            ModelFailedError: onnxruntime raised something.
        """
        session = self._wide if alone and self._wide is not None else self._session
        try:
            return Outputs(*session.run(Outputs._fields, {INPUT: np.ascontiguousarray(batch)}))
        # onnxruntime has its own classes for each way to fail, and none in common.
        except Exception as error:
            # Its words may hold paths, so they are for the log alone.
            raise ModelFailedError(f"the model {self.contract.version} cannot be run") from error

    def sit_exam(self) -> None:
        """Answer the golden pictures of the contract.

        Raises:
            ModelRefusedError: an answer is too far from the one that training saw, or none came.
        """
        questions = self.contract.exam.questions
        # Half the time on two cores, which is half of what a cold start takes beyond imports.
        parts = [msgspec.structs.replace(self.contract.exam, questions=part) for part in _halves(questions)]
        try:
            with ThreadPoolExecutor(len(parts)) as pool:
                failures = [line for lines in pool.map(lambda part: exam.sit(part, self.run), parts) for line in lines]
        except ModelFailedError as error:
            raise ModelRefusedError(str(error)) from error
        if failures:
            raise ModelRefusedError(f"the model {self.contract.version} fails its exam: {'; '.join(failures)}")


def _halves(questions: tuple[Question, ...]) -> Iterator[tuple[Question, ...]]:
    """The questions in two parts, or in one if there are too few."""
    if len(questions) > 1:
        yield questions[1::2]
    yield questions[::2]


def _session(path: Path, data: bytes, threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    # onnxruntime raises its own classes, RuntimeError and ValueError alike for a file that is no model.
    except Exception as error:
        raise ModelRefusedError(f"{path.name}: not a model that onnxruntime can load") from error


def load(path: Path) -> Model:
    """Load a file and have it sit its exam; where an int8 file fails, the fp32 file beside it does.

    Raises:
        ModelRefusedError: it must not answer, in any precision.
    """
    model = Model(path)
    try:
        model.sit_exam()
    except ModelRefusedError as error:
        beside = path.with_name(path.name.replace(".int8.", ".fp32."))
        if model.contract.precision != "int8" or beside == path:
            raise
        return _fall_back(beside, str(error))
    return model


def _fall_back(path: Path, reason: str) -> Model:
    try:
        model = Model(path)
        model.sit_exam()
    except ModelRefusedError as error:
        raise ModelRefusedError(f"{reason}; and in its place: {error}") from error
    model.fallback = reason
    return model
