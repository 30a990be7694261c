"""A file that is made to be costly takes no more than a lane's budget, and nothing from anybody else."""

import asyncio
import resource
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
import pytest_asyncio

from serving.engine.engine import Engine
from serving.engine.lane import Zygote
from serving.engine.supervisor import Lanes
from serving.engine.wire import PLAIN
from serving.engine.worker import SLACK_BYTES
from serving.errors import ProblemError
from serving.settings import Settings
from shared.pixels import Limits
from tests.fuzz import most_memory
from tests.fuzz.bombs import BOMBS, COSTLY
from tests.fuzz.test_damaged_pictures import assert_documented
from tests.serving.conftest import PHOTO, Running, Start
from tests.waiting import until

# Enough for 50 megapixels in most formats.
DECODE_BYTES = 600_000_000
# That, what a lane may take beside it, and the lane itself.
MEMORY = DECODE_BYTES + SLACK_BYTES + 150_000_000
OUTCOMES = ("decoded", "image_too_large", "unsupported_format", "undecodable_image", "too_costly")
# What once took minutes, or the interpreter's lock for seconds.
WORST = [
    "JPEG, Exif pieces without end",
    "JPEG, padding without end",
    "PNG, 1 × 50,000,000",
    "BMP, RLE, one line of 50 megapixels",
    "GIF, extensions without end",
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lanes() -> AsyncIterator[Lanes]:
    """One lane, with patience: a budget is of processor time, and the machine may be busy."""
    engine = Engine(Zygote(), Settings(lanes=1, deadline_seconds=120), Limits(max_bytes=DECODE_BYTES))
    made = engine.make(str(Settings().model_path))
    engine.place(made)
    await made.load()
    yield made
    await engine.close()


async def outcome(lanes: Lanes, data: bytes) -> str:
    try:
        await lanes.run(data, PLAIN, lambda: True)
    except ProblemError as error:
        return error.code
    return "decoded"


@pytest.mark.asyncio(loop_scope="module")
async def test_the_system_bounds_the_memory_of_a_lane(lanes: Lanes) -> None:
    (pid,) = lanes.pids
    soft, hard = resource.prlimit(pid, resource.RLIMIT_AS)
    assert soft == hard <= most_memory(pid, "VmPeak") + DECODE_BYTES + SLACK_BYTES


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in WORST else pytest.mark.slow) for name in BOMBS]
)
async def test_a_bomb_is_decoded_or_refused_and_the_picture_behind_it_answered(lanes: Lanes, name: str) -> None:
    said, behind = await asyncio.gather(outcome(lanes, BOMBS[name]()), outcome(lanes, PHOTO))
    assert said in OUTCOMES
    assert behind == "decoded"
    (pid,) = lanes.pids
    assert most_memory(pid) < MEMORY


@pytest.mark.parametrize("name", COSTLY)
def test_what_only_decoding_shows_to_be_costly_is_ended_while_others_are_answered(start: Start, name: str) -> None:
    server = start(lanes=2, deadline_seconds=120)
    engine = server.service.engine
    assert engine is not None and engine.current is not None
    lanes = engine.current
    until(lambda: lanes.usable == 2)
    bomb, answered = COSTLY[name](), 0
    with ThreadPoolExecutor(1) as other:
        url = f"http://127.0.0.1:{server.port}/predict"
        refused = other.submit(httpx.post, url, files={"file": bomb}, timeout=120)
        while not refused.done():
            assert server.predict().status_code == 200
            answered += 1
    assert refused.result().json()["code"] == "too_costly"
    assert answered > 1
    until(lambda: lanes.usable == 2)
    assert server.metric('catsdogs_lane_restarts_total{reason="cpu"}') == 1


@pytest.mark.parametrize("name", WORST)
def test_a_server_refuses_the_worst_and_answers_the_next(server: Running, name: str) -> None:
    answer = server.predict(BOMBS[name]())
    assert_documented(answer)
    assert answer.status_code in (413, 422)
    assert server.predict(PHOTO).status_code == 200
