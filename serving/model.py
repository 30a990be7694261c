"""A model file in service: its session, its contract, and the exam it passed.

An int8 file is rounded for one kind of processor arithmetic and may come out differently on another. So it has the fp32
file beside it, which answers where the int8 file fails its exam.
"""

from pathlib import Path

import numpy as np
import onnxruntime

from shared import contract, exam
from shared.contract import Contract, ContractError
from shared.exam import Outputs
from shared.pixels import Pixels

INPUT = "image"


class ModelRefusedError(Exception):
    """A file that must not answer; the message says why."""


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
            raise ModelRefusedError(f"{path}: {error.strerror}") from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        # onnxruntime raises its own classes, RuntimeError and ValueError alike for a file that is no model.
        except Exception as error:
            raise ModelRefusedError(f"{path}: not a model that onnxruntime can load") from error
        try:
            self.contract: Contract = contract.loads(self._session.get_modelmeta().custom_metadata_map)
        except ContractError as error:
            raise ModelRefusedError(f"{path}: {error}") from error

    def run(self, batch: Pixels) -> Outputs:
        """Run the network on uint8 [n, 224, 224, 3]."""
        return Outputs(*self._session.run(Outputs._fields, {INPUT: np.ascontiguousarray(batch)}))

    def sit_exam(self) -> None:
        """Answer the golden pictures of the contract.

        Raises:
            ModelRefusedError: an answer is too far from the one that training saw, or none came.
        """
        try:
            failures = exam.sit(self.contract.exam, self.run)
        # A graph that lacks an output, or an operator without a kernel here, is an error of onnxruntime's own classes.
        except Exception as error:
            raise ModelRefusedError(f"the model {self.contract.version} cannot be run: {error}") from error
        if failures:
            raise ModelRefusedError(f"the model {self.contract.version} fails its exam: {'; '.join(failures)}")


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
