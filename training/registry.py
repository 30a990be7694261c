"""The model registry: every version of ``cats-dogs`` that was a candidate, complete, and which one is champion.

A version is one training run's files: the fp32 model, the int8 model if there is one, and the report of each. It is an
MLflow model too, so ``mlflow.onnx.load_model("models:/cats-dogs@champion")`` loads the fp32 graph anywhere.
"""

import hashlib
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import mlflow
import numpy as np
import onnx
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec

from shared.contract import Contract, Precision
from shared.exam import Outputs
from shared.files import write_whole
from shared.pixels import SIZE
from training import tracking
from training.graph import INPUT
from training.stage import StageError

NAME: Final = "cats-dogs"
CHAMPION: Final = "champion"
PREVIOUS: Final = "previous_champion"
PRECISIONS: Final[tuple[Precision, ...]] = ("fp32", "int8")
SIGNATURE: Final = ModelSignature(
    inputs=Schema([TensorSpec(np.dtype(np.uint8), (-1, SIZE, SIZE, 3), INPUT)]),
    outputs=Schema(
        [
            TensorSpec(np.dtype(np.float32), shape, name)
            for name, shape in zip(Outputs._fields, ((-1, 2), (-1, 7, 7), (-1,)), strict=True)
        ]
    ),
)


@dataclass(frozen=True)
class Files:
    """A version's files as bytes, by precision; fp32 is always among them."""

    models: dict[Precision, bytes]
    reports: dict[Precision, bytes]

    @property
    def answering(self) -> bytes:
        """The model that a service takes: int8 where there is one."""
        return self.models.get("int8", self.models["fp32"])

    @property
    def digests(self) -> dict[str, str]:
        """SHA-256 of each model, under the names of the version's tags."""
        return {f"sha256_{precision}": hashlib.sha256(data).hexdigest() for precision, data in self.models.items()}

    def by_name(self) -> dict[str, bytes]:
        """Every file under the name it has in the registry and in ``serving/models``."""
        models = {f"{NAME}.{precision}.onnx": data for precision, data in self.models.items()}
        return models | {f"{NAME}.{precision}.json": data for precision, data in self.reports.items()}


def champion(client: mlflow.MlflowClient) -> ModelVersion | None:
    """The version that serves, or None before the first promotion."""
    (model,) = client.search_registered_models(f"name='{NAME}'") or [None]
    number = model.aliases.get(CHAMPION) if model else None
    return client.get_model_version(NAME, str(number)) if number else None


def find_version(client: mlflow.MlflowClient, files: Files) -> ModelVersion | None:
    """The version that holds exactly these models, or None."""
    names = [f"sha256_{precision}" for precision in PRECISIONS]
    for version in client.search_model_versions(f"name='{NAME}'"):
        if {name: version.tags[name] for name in names if name in version.tags} == files.digests:
            return version
    return None


def register(client: mlflow.MlflowClient, files: Files, contract: Contract, tags: dict[str, str]) -> ModelVersion:
    """Register the files as a version, in the run that trained them if this store knows it."""
    trained_in: str | None = None  # stays None for a model that was trained elsewhere and came by `dvc pull`
    with suppress(MlflowException):
        trained_in = client.get_run(contract.provenance.mlflow_run_id).info.run_id
    with tracking.run(trained_in, "promote") as run_id, tempfile.TemporaryDirectory() as folder:
        for name, data in files.by_name().items():
            write_whole(Path(folder, name), data)
        logged = mlflow.onnx.log_model(
            onnx.load_model_from_string(files.models["fp32"]),
            name=NAME,
            signature=SIGNATURE,
            pip_requirements=["onnxruntime", "numpy"],
            extra_files=[str(path) for path in sorted(Path(folder).iterdir())],
            save_as_external_data=False,
        )
        if not client.search_registered_models(f"name='{NAME}'"):
            client.create_registered_model(NAME, description="Tells cats from dogs; `champion` is the one that serves.")
        tags = files.digests | {"version": contract.version} | tags
        return client.create_model_version(NAME, logged.model_uri, run_id, tags, model_id=logged.model_id)


def download(version: ModelVersion) -> Files:
    """Download a version's files from the store.

    Raises:
        StageError: they are gone, or differ from those that were registered.
    """
    with tempfile.TemporaryDirectory() as folder:
        uri = f"models:/{NAME}/{version.version}/extra_files"
        try:
            found = Path(mlflow.artifacts.download_artifacts(uri, dst_path=folder))
        except (MlflowException, OSError) as error:
            raise StageError(
                f"{version_name(version)}: its files cannot be downloaded from the MLflow store ({error})"
            ) from error
        models, reports = (
            {
                precision: path.read_bytes()
                for precision in PRECISIONS
                if (path := _at(found, precision, suffix)).exists()
            }
            for suffix in ("onnx", "json")
        )
    files = Files(models, reports)
    kept = {tag: value for tag, value in version.tags.items() if tag.startswith("sha256_")}
    if files.digests != kept:
        raise StageError(
            f"{version_name(version)}: its files in the MLflow store differ from those that were registered"
        )
    return files


def version_name(version: ModelVersion) -> str:
    """Name of a version, such as ``cats-dogs/3``."""
    return f"{version.name}/{version.version}"


def _at(folder: Path, precision: Precision, suffix: str) -> Path:
    return folder / f"{NAME}.{precision}.{suffix}"
