"""A version's files: what they hold, how they name their version, and whether a service takes them."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import onnx

from shared import contract, exam
from shared.contract import Contract, Precision
from training.graph import single_threaded

NAME: Final = "cats-dogs"
PRECISIONS: Final[tuple[Precision, ...]] = ("int8", "fp32")  # in the order in which a service tries them


@dataclass(frozen=True)
class Files:
    """Models and reports as bytes, by precision."""

    models: dict[Precision, bytes]
    reports: dict[Precision, bytes]

    @property
    def answering(self) -> bytes:
        """The model that a service takes: int8 where there is one."""
        return next(self.models[precision] for precision in PRECISIONS if precision in self.models)

    @property
    def digests(self) -> dict[str, str]:
        """SHA-256 of each model, under the names of the version's tags."""
        return {f"sha256_{precision}": hashlib.sha256(data).hexdigest() for precision, data in self.models.items()}

    @property
    def network(self) -> str:
        """SHA-256 of the graph that answers; a contract written anew does not change it."""
        model = onnx.load_model_from_string(self.answering)
        del model.metadata_props[:]
        return hashlib.sha256(model.SerializeToString()).hexdigest()

    def named(self, version: str | None) -> "Files":
        """The files with another name of their version in contract and report; None is how the registry keeps them."""
        return Files(
            {precision: _named(data, version) for precision, data in self.models.items()},
            {precision: _named_report(data, version) for precision, data in self.reports.items()},
        )

    def by_name(self) -> dict[str, bytes]:
        """Every file under the name it has in the registry and in ``serving/models``."""
        models = {f"{NAME}.{precision}.onnx": data for precision, data in self.models.items()}
        return models | {f"{NAME}.{precision}.json": data for precision, data in self.reports.items()}


def read(folder: Path) -> Files:
    """Read what a folder has of the files of a version."""
    models, reports = (
        {
            precision: path.read_bytes()
            for precision in PRECISIONS
            if (path := folder / f"{NAME}.{precision}.{suffix}").exists()
        }
        for suffix in ("onnx", "json")
    )
    return Files(models, reports)


def read_contract(model: bytes) -> Contract:
    """Read a model's contract.

    Raises:
        ContractError: this code cannot keep it.
        Exception: protobuf's own, for a file that is not a model.
    """
    entries = onnx.load_model_from_string(model).metadata_props
    return contract.loads({entry.key: entry.value for entry in entries})


def raw_contract(model: bytes) -> dict[str, Any]:
    """A model's contract as it stands there, also one that this code no longer keeps."""
    document: dict[str, Any] = msgspec.json.decode(_entry(onnx.load_model_from_string(model)).value)
    return document


def refusal(model: bytes) -> str | None:
    """Why a service would refuse the file; None if it passes its exam."""
    try:
        document = read_contract(model)
        failures = exam.sit(document.exam, single_threaded(model), document.second_look)
    except contract.ContractError as error:
        return str(error)
    # For a file that is not a model protobuf and onnxruntime raise their own classes, RuntimeError and ValueError.
    except Exception as error:
        return f"it does not run ({(str(error) or type(error).__name__).splitlines()[0]})"
    return f"it fails its exam: {'; '.join(failures)}" if failures else None


def _named(data: bytes, version: str | None) -> bytes:
    model = onnx.load_model_from_string(data)
    entry = _entry(model)
    # Not by way of Contract, which would add the fields that a later edition of it has.
    document = msgspec.json.decode(entry.value)
    document["provenance"]["registry"] = version
    entry.value = msgspec.json.encode(document).decode()
    named: bytes = model.SerializeToString()
    return named


def _entry(model: onnx.ModelProto) -> onnx.StringStringEntryProto:
    found: list[onnx.StringStringEntryProto] = [e for e in model.metadata_props if e.key == contract.METADATA_KEY]
    if not found:
        raise contract.ContractError("the file carries no contract")
    return found[0]


def _named_report(data: bytes, version: str | None) -> bytes:
    report = json.loads(data)
    report.pop("registry", None)
    if version:
        report["registry"] = version
    return (json.dumps(report, indent=2, ensure_ascii=False) + "\n").encode()
