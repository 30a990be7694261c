"""BentoML, as its documentation has it: a service class, worker processes, batches if asked.

BENCH_MODEL=model.onnx bentoml serve ops.bench.baselines.bentoml_server:Pets
"""

import os
from pathlib import Path
from typing import Any

import bentoml
from bentoml.exceptions import InvalidArgument

from ops.bench.baselines.network import Network
from shared.pixels import RefusedImageError

WORKERS = int(os.environ.get("BENCH_WORKERS", "1"))
# Pictures in a batch; at 1 there are none.
BATCH = int(os.environ.get("BENCH_BATCH", "1"))
SETTINGS: Any = {"workers": WORKERS, "logging": {"access": {"enabled": False}}, "traffic": {"timeout": 60}}
if threads := int(os.environ.get("BENCH_AT_ONCE", "0")):
    SETTINGS["threads"] = threads


def answer_all(network: Network, files: list[Path]) -> list[dict[str, Any]]:
    """Answer the pictures in files."""
    try:
        return network.answers([file.read_bytes() for file in files])
    except RefusedImageError as error:
        raise InvalidArgument(str(error)) from error


if BATCH > 1:

    @bentoml.service(**SETTINGS)
    class Pets:
        """Cats or dogs, in batches."""

        def __init__(self) -> None:
            """Load the model, in each worker once."""
            self.network = Network()

        @bentoml.api(batchable=True, max_batch_size=BATCH, max_latency_ms=10_000)
        def predict(self, file: list[Path]) -> list[dict[str, Any]]:
            """Answer a batch."""
            return answer_all(self.network, file)

else:

    @bentoml.service(**SETTINGS)
    class Pets:  # type: ignore[no-redef]  # one of two ways to be served, by the variant
        """Cats or dogs."""

        def __init__(self) -> None:
            """Load the model, in each worker once."""
            self.network = Network()

        @bentoml.api
        def predict(self, file: Path) -> dict[str, Any]:
            """Answer one picture."""
            return answer_all(self.network, [file])[0]
