"""Predictions without a server, with the same lanes, on all cores."""

import asyncio
import contextlib
import os
import sys
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator
from glob import glob
from pathlib import Path

from serving.engine.engine import Engine
from serving.engine.lane import LaneStartError, Zygote
from serving.engine.memory import MOST_DECODE_BYTES
from serving.engine.supervisor import Lanes
from serving.engine.wire import PLAIN, Answer
from serving.errors import ProblemError
from serving.ids import Ids
from serving.messages import Prediction
from serving.settings import Settings
from shared.spec import Limits


class ModelError(Exception):
    """The model is refused; the message says why."""


@contextlib.asynccontextmanager
async def lanes(settings: Settings, zygote: Zygote | None = None, *, wide: bool = True) -> AsyncIterator[Lanes]:
    """Start lanes and wait until they are ready; they end with the block.

    Args:
        settings: of the lanes.
        zygote: which may run already.
        wide: whether a picture that is alone gets all cores.

    Raises:
        ModelError: the model is refused.
    """
    engine = Engine(zygote or Zygote(), settings, Limits(settings.max_pixels, MOST_DECODE_BYTES), wide=wide)
    made = engine.make(str(settings.model_path))
    engine.place(made)
    checks = asyncio.create_task(_check(engine))
    try:
        await made.load()
        yield made
    except LaneStartError as error:
        raise ModelError(str(error)) from error
    finally:
        checks.cancel()
        await engine.close()


async def _check(engine: Engine) -> None:
    while True:
        await asyncio.sleep(1)
        engine.check()


def files(name: str) -> Iterator[str]:
    """The files that an argument means; hidden ones in a folder are passed over, as by ``catsdogs score``."""
    path = Path(name)
    if name != "-" and path.is_dir():
        for file in sorted(path.rglob("*")):
            if file.is_file() and not any(part.startswith(".") for part in file.relative_to(path).parts):
                yield str(file)
    elif path.exists() or not (matching := sorted(glob(name, recursive=True))):  # noqa: PTH207 - Path's takes no absolute pattern
        yield name
    else:
        for match in matching:
            yield from files(match)


async def predict(lanes: Lanes, names: Iterable[str]) -> AsyncIterator[tuple[str, Prediction | str]]:
    r"""Yield each file's name, in order, with its prediction, whose ``client_id`` is the name, or the reason for none.

    ``-`` is what stdin has. A byte of a name that is no UTF-8 becomes ``\xNN``.
    """
    ids = Ids()

    async def one(file: str) -> Prediction | str:
        try:
            data = await asyncio.to_thread(sys.stdin.buffer.read if file == "-" else Path(file).read_bytes)
            answer, _ = await lanes.run(data, PLAIN, lambda: True)
        except OSError as error:
            return error.strerror or str(error)
        except ProblemError as error:
            return error.detail
        assert isinstance(answer, Answer)
        assert lanes.model is not None
        return Prediction.of(answer, ids.new(), _text(file), lanes.model.contract.version)

    under_way: deque[tuple[str, asyncio.Task[Prediction | str]]] = deque()
    for file in names:
        under_way.append((file, asyncio.ensure_future(one(file))))
        if len(under_way) > 2 * lanes.count:
            path, task = under_way.popleft()
            yield _text(path), await task
    for path, task in under_way:
        yield _text(path), await task


def _text(name: str) -> str:
    return os.fsencode(name).decode("utf-8", "backslashreplace")
