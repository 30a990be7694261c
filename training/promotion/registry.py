"""The model registry: every version of ``cats-dogs`` that was a candidate, complete, and which one is champion.

A version is one training run's files: the fp32 model, the int8 model if there is one, and the report of each. It is an
MLflow model too, so ``mlflow.onnx.load_model("models:/cats-dogs@champion")`` loads the fp32 graph anywhere.
"""

import tempfile
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import mlflow
import numpy as np
import onnx
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec

from shared.files import write_whole
from shared.second_look import inputs
from shared.spec import SIZE
from training import tracking
from training.promotion.files import NAME, PRECISIONS, Files, raw_contract, read
from training.stage import StageError

CHAMPION: Final = "champion"
# Tags of a version.
PREVIOUS: Final = "previous_champion"
SERVED: Final = "served"  # since when it serves, or last did
ROLLED_BACK: Final = "rolled_back"
DECISION: Final = "decision"
NETWORK: Final = "sha256_network"
TEST_SIDE: Final = "test_side"
ATTEMPT: Final = "attempt"


def versions(client: mlflow.MlflowClient) -> list[ModelVersion]:
    """All versions, the newest first."""
    page = client.search_model_versions(f"name='{NAME}'")
    found = list(page)
    while page.token:
        page = client.search_model_versions(f"name='{NAME}'", page_token=page.token)
        found += page
    return sorted(found, key=lambda version: -int(number(version)))


def champion(client: mlflow.MlflowClient) -> ModelVersion | None:
    """The version with the alias, or None before the first promotion."""
    (model,) = client.search_registered_models(f"name='{NAME}'") or [None]
    number = model.aliases.get(CHAMPION) if model else None
    return client.get_model_version(NAME, str(number)) if number else None


def find_version(client: mlflow.MlflowClient, files: Files) -> ModelVersion | None:
    """The version that holds exactly these models, or None."""
    return next((version for version in versions(client) if holds(version, files)), None)


def holds(version: ModelVersion, files: Files) -> bool:
    """Whether these are the version's models."""
    names = [f"sha256_{precision}" for precision in PRECISIONS]
    return {name: version.tags[name] for name in names if name in version.tags} == files.digests


def has_served(version: ModelVersion) -> bool:
    """Whether it was ever champion; versions of 0.1.0 have only the decision."""
    return SERVED in version.tags or version.tags.get(DECISION) == "promoted"


def rolled_back(version: ModelVersion) -> bool:
    """Whether it was rolled back after it last began to serve."""
    return ROLLED_BACK in version.tags and version.tags[ROLLED_BACK] >= version.tags.get(SERVED, "")


def now() -> str:
    """The time as tags have it, fine enough to tell which of two came first."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def tag(client: mlflow.MlflowClient, version: str, tags: dict[str, str]) -> None:
    """Set tags of the version with this number."""
    for name, value in tags.items():
        client.set_model_version_tag(NAME, version, name, value)


def register(client: mlflow.MlflowClient, files: Files, tags: dict[str, str]) -> ModelVersion:
    """Register the files as a version, in the run that trained them if this store knows it."""
    document = raw_contract(files.answering)
    trained_in: str | None = None  # stays None for a model that was trained elsewhere and came by `dvc pull`
    with suppress(MlflowException):
        trained_in = client.get_run(document["provenance"]["mlflow_run_id"]).info.run_id
    with tracking.run(trained_in, "promote") as run_id, tempfile.TemporaryDirectory() as folder:
        for name, data in files.by_name().items():
            write_whole(Path(folder, name), data)
        model = onnx.load_model_from_string(files.models.get("fp32", files.answering))
        logged = mlflow.onnx.log_model(
            model,
            name=NAME,
            signature=ModelSignature(_schema(model.graph.input), _schema(model.graph.output)),
            input_example=inputs(np.zeros((1, SIZE, SIZE, 3), np.uint8), again=False),
            pip_requirements=["onnxruntime", "numpy"],
            extra_files=[str(path) for path in sorted(Path(folder).iterdir())],
            save_as_external_data=False,
        )
        if not client.search_registered_models(f"name='{NAME}'"):
            client.create_registered_model(NAME, description="Tells cats from dogs; `champion` is the one that serves.")
        tags = files.digests | {NETWORK: files.network, "version": document["version"]} | tags
        return client.create_model_version(NAME, logged.model_uri, run_id, tags, model_id=logged.model_id)


def _schema(values: Iterable[onnx.ValueInfoProto]) -> Schema:
    tensors = [(value.name, value.type.tensor_type) for value in values]
    return Schema(
        [
            TensorSpec(
                np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)),
                tuple(dimension.dim_value or -1 for dimension in tensor.shape.dim),
                name,
            )
            for name, tensor in tensors
        ]
    )


def download(version: ModelVersion) -> Files:
    """Download a version's files from the store.

    Raises:
        StageError: they are gone, or differ from those that were registered.
    """
    with tempfile.TemporaryDirectory() as folder:
        uri = f"models:/{NAME}/{version.version}/extra_files"
        try:
            files = read(Path(mlflow.artifacts.download_artifacts(uri, dst_path=folder)))
        except (MlflowException, OSError) as error:
            raise StageError(
                f"{version_name(version)}: its files cannot be downloaded from the MLflow store ({error})"
            ) from error
    if not holds(version, files):
        raise StageError(
            f"{version_name(version)}: its files in the MLflow store differ from those that were registered"
        )
    return files


def number(version: ModelVersion) -> str:
    """A version's number, which some of MLflow's stores give as an int."""
    return str(version.version)


def version_name(version: ModelVersion) -> str:
    """Name of a version, such as ``cats-dogs/3``."""
    return f"{version.name}/{version.version}"
