"""LitServe, as its documentation has it for a processor: worker processes that decode and infer, batches if asked.

BENCH_MODEL=model.onnx python -m ops.bench.baselines.litserve_server --port 8000 --workers 2
"""

import argparse
from typing import Any

import litserve
from fastapi import HTTPException, Request

from ops.bench.baselines.network import Network
from shared.pixels import RefusedImageError


class Pets(litserve.LitAPI):
    """Cats or dogs."""

    def setup(self, device: str) -> None:  # noqa: ARG002 - LitServe's signature
        """Load the model, in each worker once."""
        self.network = Network()

    def decode_request(self, request: Request) -> bytes:
        """Take the file out of the form."""
        data: bytes = request["file"].file.read()
        return data

    def batch(self, inputs: list[bytes]) -> list[bytes]:
        """Keep a batch as it is: files have different lengths."""
        return inputs

    def unbatch(self, output: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Keep a batch's answers as they are."""
        return output

    def predict(self, x: bytes | list[bytes]) -> dict[str, Any] | list[dict[str, Any]]:
        """Answer a picture, or a batch of them."""
        try:
            return self.network.answers(x) if isinstance(x, list) else self.network.answer(x)
        except RefusedImageError as error:
            raise HTTPException(422, str(error)) from error

    def encode_response(self, output: dict[str, Any]) -> dict[str, Any]:
        """Answer JSON, which it is already."""
        return output


def main() -> None:
    """Serve."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--api-servers", type=int, default=1)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--fast-queue", action="store_true")
    arguments = parser.parse_args()
    batching = {"max_batch_size": arguments.batch, "batch_timeout": 0.005} if arguments.batch > 1 else {}
    server = litserve.LitServer(
        Pets(**batching),
        accelerator="cpu",
        workers_per_device=arguments.workers,
        fast_queue=arguments.fast_queue,
    )
    server.run(
        host="127.0.0.1",
        port=arguments.port,
        num_api_servers=arguments.api_servers,
        log_level="warning",
        generate_client_file=False,
    )


if __name__ == "__main__":
    main()
