"""FastAPI as a careful user writes it.

    BENCH_MODEL=model.onnx uvicorn ops.bench.baselines.fastapi_server:app --no-access-log

A ``def`` handler, so that the event loop never computes; the session made once, at startup; no picture worth a 500.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from anyio.to_thread import current_default_thread_limiter
from fastapi import FastAPI, HTTPException, Request, UploadFile
from pydantic import BaseModel

from ops.bench.baselines.network import Network
from shared.pixels import RefusedImageError

# Pictures worked on at once; 0 leaves it to anyio, which allows 40 threads.
AT_ONCE = "BENCH_AT_ONCE"


class Prediction(BaseModel):
    """The answer."""

    predicted_label: str
    probabilities: dict[str, float]
    familiarity: float


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Load the model before the port opens."""
    app.state.network = Network()
    if at_once := int(os.environ.get(AT_ONCE, "0")):
        current_default_thread_limiter().total_tokens = at_once
    yield


app = FastAPI(lifespan=lifespan)


@app.post("/predict")
def predict(request: Request, file: UploadFile) -> Prediction:
    """Answer one picture."""
    try:
        return Prediction(**request.app.state.network.answer(file.file.read()))
    except RefusedImageError as error:
        raise HTTPException(422, str(error)) from error
