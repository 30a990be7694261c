"""A model in a lane: its sessions, its contract, and its exam.

An int8 file may give other results on another kind of processor. If it fails its exam, the fp32 file beside it serves.
"""

import hashlib
import os
import weakref
from pathlib import Path
from typing import Any

import onnxruntime

from shared import contract, exam
from shared.contract import Contract, ContractError, Precision
from shared.pixels import Photo, Pixels
from shared.second_look import Look, Outputs, inputs, look


class ModelRefusedError(Exception):
    """A refused model file; the message says why. ``again``: it could not be read, and trying again may help."""

    def __init__(self, reason: str, *, again: bool = False) -> None:
        """Keep the reason."""
        super().__init__(reason)
        self.again = again


class ExamFailedError(ModelRefusedError):
    """An intact file whose answers differ from those in its exam."""

    def __init__(self, reason: str, precision: Precision) -> None:
        """Keep the reason, and the precision of the file."""
        super().__init__(reason)
        self.precision = precision


class ModelFailedError(Exception):
    """onnxruntime failed on a picture, although the model passed its exam."""


class Network:
    """Both networks of a file in one session; a :class:`shared.second_look.Network`."""

    def __init__(self, session: Any, version: str) -> None:
        """Take the session, and its model's version."""
        self._session = session
        self._version = version

    def first(self, pictures: Pixels) -> Outputs:
        """Run the first look's network on uint8 [n, 224, 224, 3].

        Raises:
            ModelFailedError: onnxruntime raised an error.
        """
        return self._run(pictures, again=False)

    def closer(self, pictures: Pixels) -> Outputs:
        """Run the second look's network on uint8 [n, side, side, 3].

        Raises:
            ModelFailedError: onnxruntime raised an error.
        """
        return self._run(pictures, again=True)

    def _run(self, pictures: Pixels, *, again: bool) -> Outputs:
        try:
            return Outputs(*self._session.run(Outputs._fields, inputs(pictures, again=again)))
        # onnxruntime's error classes have no common base.
        except Exception as error:
            raise ModelFailedError(f"the model {self._version} cannot be run") from error


class Model:
    """The networks and the contract of one file.

    ``fallback`` says why this file serves instead of the one asked for; None if it is that one.
    """

    def __init__(self, path: Path, fallback: str | None = None) -> None:
        """Read the file, and make a session with one thread, which sits the exam.

        Raises:
            ModelRefusedError: it cannot be read, is not an ONNX model, its contract is not accepted, or it fails its
                exam.
        """
        self.file = path.name
        self.fallback = fallback
        # Kept open, since keeping the bytes takes 9 MB: another file may come to its path, even one that blocks.
        self._descriptor = _opened(path)
        weakref.finalize(self, os.close, self._descriptor)
        data = self._read()
        self.digest = hashlib.sha256(data).hexdigest()
        session = _session(data, self.file, 1)
        try:
            self.contract: Contract = contract.loads(session.get_modelmeta().custom_metadata_map)
        except ContractError as error:
            raise ModelRefusedError(f"{self.file}: {error}") from error
        self.network = self._wide = self._examined(session)

    def widen(self, threads: int) -> None:
        """Add a session with ``threads`` threads, for a picture that has the machine to itself.

        Raises:
            ModelRefusedError: the file has changed, or fails its exam; the first session answers in its place.
        """
        data = self._read()
        if hashlib.sha256(data).hexdigest() != self.digest:
            raise ModelRefusedError(f"{self.file}: it has changed since it was loaded")
        self._wide = self._examined(_session(data, self.file, threads))

    def _read(self) -> bytes:
        try:  # not from the descriptor's position, which processes share
            return os.pread(self._descriptor, os.fstat(self._descriptor).st_size, 0)
        except OSError as error:
            raise _unreadable(self.file, error) from error

    def look(self, photo: Photo, *, alone: bool = False) -> Look:
        """Look at a picture, and again if need be; ``alone``: in the wide session, if there is one.

        Raises:
            ModelFailedError: onnxruntime raised an error.
        """
        return look(photo, self._wide if alone else self.network, self.contract.second_look)

    def _examined(self, session: Any) -> Network:
        network = Network(session, self.contract.version)
        try:
            failures = exam.sit(self.contract.exam, network, self.contract.second_look)
        except ModelFailedError as error:
            raise ModelRefusedError(f"{error}: {error.__cause__}") from error
        if failures:
            reason = f"the model {self.contract.version} fails its exam: {'; '.join(failures)}"
            raise ExamFailedError(reason, self.contract.precision)
        return network


def _session(data: bytes, file: str, threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    # For an invalid file onnxruntime raises its own classes, RuntimeError or ValueError.
    except Exception as error:
        raise ModelRefusedError(f"{file}: not a model that onnxruntime can load") from error
    session._model_bytes = None  # it would keep the file for a second session, which is not asked for
    return session


def load(path: Path) -> Model:
    """Read a file and have it sit its exam; if an int8 file fails, try the fp32 file beside it.

    Raises:
        ModelRefusedError: the file is refused, and so is the fp32 file, if there is one.
    """
    try:
        return Model(path)
    except ExamFailedError as error:
        beside = path.with_name(path.name.replace(".int8.", ".fp32."))
        if beside == path or error.precision != "int8":
            raise
        reason = str(error)
    try:
        return Model(beside, reason)
    except ModelRefusedError as error:
        raise ModelRefusedError(f"{reason}; fallback: {error}") from error


def _opened(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY)
    except OSError as error:
        raise _unreadable(path.name, error) from error


def _unreadable(file: str, error: OSError) -> ModelRefusedError:
    return ModelRefusedError(f"{file}: {error.strerror}", again=True)
