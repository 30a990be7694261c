"""Lanes as processes: what they answer, what they may cost, and what becomes of one that ends."""

import asyncio
import errno
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from serving.engine.engine import Engine
from serving.engine.lane import ClientGoneError, LaneStartError, Zygote
from serving.engine.supervisor import Lanes
from serving.engine.wire import PLAIN, Answer, Flags
from serving.errors import ProblemError
from serving.settings import SHIPPED_INT8, Settings
from shared.pixels import Limits
from tests.conftest import blobs, encoded

Make = Callable[..., Awaitable[Lanes]]
MEMORY = 300_000_000


@pytest.fixture
async def make() -> AsyncIterator[Make]:
    """Lanes that decode what `tests.serving.engine.hostile` does; they end with the test."""
    engines: list[Engine] = []

    async def begin(lanes: int = 1, path: Path = SHIPPED_INT8, worker: str = "hostile", **settings: object) -> Lanes:
        given = Settings(lanes=lanes, **{"deadline_seconds": 20.0, **settings})  # type: ignore[arg-type]
        restarts: list[str] = []
        engine = Engine(Zygote(f"tests.serving.engine.{worker}"), given, Limits(max_bytes=MEMORY), restarts.append)
        engines.append(engine)
        made = engine.make(str(path))
        engine.place(made)
        made.restarts, made.engine = restarts, engine  # type: ignore[attr-defined]
        await made.load()
        return made

    yield begin
    for engine in engines:
        await engine.close()


def restarts(lanes: Lanes) -> list[str]:
    found: list[str] = lanes.restarts  # type: ignore[attr-defined]
    return found


async def run(lanes: Lanes, data: bytes, flags: Flags = PLAIN) -> Answer:
    answer, _ = await lanes.run(data, flags, lambda: True)
    assert isinstance(answer, Answer)
    return answer


async def refusal(lanes: Lanes, data: bytes) -> ProblemError:
    with pytest.raises(ProblemError) as refused:
        await run(lanes, data)
    return refused.value


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110  # what it asks has no event
            await asyncio.sleep(0.01)


async def all_ready(lanes: Lanes) -> None:
    await until(lambda: lanes.usable == lanes.count)


async def test_a_picture_is_answered_and_says_what_it_cost(make: Make) -> None:
    lanes = await make()
    answer = await run(lanes, encoded(blobs(1), "JPEG"))
    assert answer.cats + answer.dogs == pytest.approx(1)
    assert 0 < answer.decode < answer.cpu
    assert answer.infer > 0


@pytest.mark.parametrize(
    ("data", "code", "reason"),
    [
        (b"spin 1000", "too_costly", "cpu"),
        (b"spin-in-c 1e12", "too_costly", "cpu"),
        (b"crash", "not_ready", "crash"),
        (b"exit", "not_ready", "crash"),
        (b"raise", "not_ready", "crash"),
        (b"fail", "not_ready", "model"),
    ],
)
async def test_a_file_that_ends_its_lane_costs_its_own_request_and_nothing_else(
    make: Make, data: bytes, code: str, reason: str
) -> None:
    lanes = await make()
    waiting = [asyncio.ensure_future(refusal(lanes, data)), asyncio.ensure_future(run(lanes, b"echo 0.25"))]
    refused, answer = await asyncio.gather(*waiting)
    assert isinstance(refused, ProblemError) and isinstance(answer, Answer)
    assert refused.code == code
    assert answer.familiarity == 0.25
    assert restarts(lanes) == [reason]
    assert (lanes.busy, len(lanes.queue)) == (0, 0)


async def test_memory_beyond_the_limit_is_said_to_be_that_and_costs_no_lane(make: Make) -> None:
    lanes = await make(max_cpu_seconds=20.0)  # new memory may be slow to get
    before = await run(lanes, b"pid")
    assert (await refusal(lanes, b"allocate 2000")).code == "image_too_large"
    assert await run(lanes, b"allocate 100")
    assert (await run(lanes, b"pid")).familiarity == before.familiarity
    assert restarts(lanes) == []


async def test_a_lane_that_sleeps_is_ended_and_replaced(make: Make) -> None:
    lanes = await make(deadline_seconds=0.5)
    assert (await refusal(lanes, b"sleep 1000")).code == "deadline_exceeded"
    while not restarts(lanes):
        lanes.check()
        await asyncio.sleep(0.05)
    await all_ready(lanes)
    assert restarts(lanes) == ["hang"]
    assert (await run(lanes, b"echo 0.5")).familiarity == 0.5


async def test_processor_time_counts_and_not_the_clock(make: Make) -> None:
    lanes = await make(max_cpu_seconds=0.3)
    assert await run(lanes, b"sleep 1")
    assert (await refusal(lanes, b"spin 0.6")).code == "too_costly"


async def test_a_lane_has_no_network_and_opens_no_file(make: Make) -> None:
    lanes = await make()
    assert (await refusal(lanes, b"network")).code == "not_ready"
    assert restarts(lanes) == ["crash"]


async def test_a_lane_that_somebody_kills_is_replaced(make: Make) -> None:
    lanes = await make(lanes=2)
    await all_ready(lanes)
    os.kill(int((await run(lanes, b"pid")).familiarity), signal.SIGKILL)
    await until(lambda: restarts(lanes) == ["memory"])
    await all_ready(lanes)


def threads(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


async def test_a_lane_is_tried_again_after_a_failed_fork_and_one_that_hung_as_it_started(
    make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    lanes = await make(worker="starts")
    monkeypatch.setattr("serving.engine.supervisor.START_SECONDS", 3.0)
    (first,) = lanes.pids
    os.kill(first, signal.SIGKILL)

    def replaced() -> bool:
        lanes.engine.check()  # type: ignore[attr-defined]
        return lanes.usable == 1 and lanes.pids != [first]

    await until(replaced)
    assert (await run(lanes, b"echo 0.5")).familiarity == 0.5
    reasons = [record.fields["reason"] for record in caplog.records if record.message == "a lane did not start"]  # type: ignore[attr-defined]
    assert reasons == [
        "no process can be forked: Resource temporarily unavailable",
        "the lane ended as it started (hang)",
    ]


async def test_a_lane_is_tried_again_when_descriptors_have_run_out(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    lanes = await make()
    memfd_create, tries = os.memfd_create, list[str]()

    def run_out(name: str) -> int:
        tries.append(name)
        if len(tries) < 3:
            raise OSError(errno.EMFILE, "too many open files")
        return memfd_create(name)

    monkeypatch.setattr(os, "memfd_create", run_out)
    os.kill(lanes.pids[0], signal.SIGKILL)
    await until(lambda: len(tries) == 3)
    await all_ready(lanes)
    assert (await run(lanes, b"echo 0.5")).familiarity == 0.5


async def test_what_comes_when_no_lane_can_be_started_any_more_is_refused_at_once(make: Make) -> None:
    lanes = await make(deadline_seconds=3600.0)
    os.kill(lanes.zygote.pid, signal.SIGKILL)
    await until(lambda: lanes.zygote.ended and not lanes.pids)
    assert (await refusal(lanes, b"echo 0.5")).code == "not_ready"


async def test_lanes_that_retire_are_watched_as_well(make: Make) -> None:
    lanes = await make(deadline_seconds=0.2)
    engine: Engine = lanes.engine  # type: ignore[attr-defined]
    with lanes:
        engine.place(engine.make(str(SHIPPED_INT8)))
        assert (await refusal(lanes, b"sleep 3600")).code == "deadline_exceeded"
        (hung,) = lanes.pids

        def ended() -> bool:
            engine.check()
            return hung not in lanes.pids

        await until(ended)


async def test_the_process_that_forks_lanes_has_no_threads(make: Make) -> None:
    lanes = await make()
    assert threads(lanes.zygote.pid) == 1


async def test_a_request_that_has_the_machine_to_itself_is_told_so(make: Make) -> None:
    lanes = await make(lanes=2)
    await all_ready(lanes)
    assert (await run(lanes, b"alone")).label == "cats"
    both = await asyncio.gather(run(lanes, b"sleep 0.5"), run(lanes, b"alone"))
    assert both[1].label == "dogs"


async def test_work_is_done_in_the_order_it_came(make: Make) -> None:
    lanes, order = await make(), list[int]()

    async def one(number: int) -> None:
        await run(lanes, b"echo 1")
        order.append(number)

    await asyncio.gather(*map(one, range(50)))
    assert order == list(range(50))


async def test_a_client_that_left_and_a_caller_that_gave_up_are_skipped(make: Make) -> None:
    lanes = await make()
    slow = asyncio.ensure_future(run(lanes, b"sleep 0.3"))
    left = asyncio.ensure_future(lanes.run(b"crash", PLAIN, lambda: False))
    cancelled = asyncio.ensure_future(run(lanes, b"crash"))
    await asyncio.sleep(0)
    cancelled.cancel()
    await slow
    with pytest.raises(ClientGoneError):
        await left
    assert (await run(lanes, b"echo 0.5")).familiarity == 0.5
    assert restarts(lanes) == []


async def test_what_waits_too_long_is_given_up_and_never_done(make: Make) -> None:
    lanes = await make(deadline_seconds=0.4)
    slow = asyncio.ensure_future(refusal(lanes, b"sleep 0.6"))
    late = asyncio.ensure_future(refusal(lanes, b"crash"))
    assert [(await task).code for task in (slow, late)] == ["deadline_exceeded"] * 2
    assert (await late).retry_after is not None
    assert (await run(lanes, b"echo 0.5")).familiarity == 0.5
    assert restarts(lanes) == []


async def test_a_large_body_arrives_whole(make: Make) -> None:
    lanes = await make()
    assert (await run(lanes, b"echo 0.5" + b" " * 60_000_000)).familiarity == 0.5


async def test_a_large_body_is_let_go_of_when_it_is_answered(make: Make) -> None:
    lanes = await make()
    body = bytearray(b"echo 0.5" + b" " * 10_000_000)
    await lanes.run(body, PLAIN, lambda: True)
    body.clear()  # BufferError: it is still in use


async def test_a_body_that_there_is_no_memory_for_costs_no_lane(make: Make) -> None:
    lanes = await make()
    assert (await refusal(lanes, bytes(800_000_000))).code == "body_too_large"
    assert (await run(lanes, b"echo 0.5")).familiarity == 0.5
    assert restarts(lanes) == []


async def test_closing_finishes_what_was_submitted(make: Make) -> None:
    lanes = await make()
    tasks = [asyncio.ensure_future(run(lanes, b"sleep 0.1")) for _ in range(5)]
    await asyncio.sleep(0)
    await lanes.close()
    assert all(await asyncio.gather(*tasks))


@pytest.mark.parametrize("lanes", [1, 2, 3])
async def test_closing_leaves_no_task_behind(make: Make, lanes: int) -> None:
    before = asyncio.all_tasks()
    await (await make(lanes)).close()  # at once, while lanes beyond the first are starting
    assert asyncio.all_tasks() == before


@pytest.mark.parametrize("data", [b"", b"not a model"])
async def test_a_file_that_is_no_model_is_refused(make: Make, tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(data)
    with pytest.raises(LaneStartError, match="not a model") as refused:
        await make(path=path)
    assert not refused.value.again
    path.unlink()
    with pytest.raises(LaneStartError, match="No such file") as missing:
        await make(path=path)
    assert missing.value.again


async def test_retry_after_follows_what_pictures_take_and_the_queue(make: Make) -> None:
    lanes = await make(deadline_seconds=60.0)
    for _ in range(60):
        await run(lanes, b"sleep 0.1")
    assert lanes.retry_after() == 1
    tasks = [asyncio.ensure_future(run(lanes, b"sleep 0.1")) for _ in range(40)]
    await asyncio.sleep(0)
    assert 3 <= lanes.retry_after() <= 6
    for task in tasks:
        task.cancel()


async def test_admission_ends_with_the_queue_and_with_the_service() -> None:
    engine = Engine(Zygote("tests.serving.engine.hostile"), Settings(lanes=1, max_queue=2), Limits(max_bytes=MEMORY))
    try:
        with pytest.raises(ProblemError) as refused:
            engine.admit()
        assert refused.value.code == "not_ready"
        assert not engine.idle
        lanes = engine.make(str(SHIPPED_INT8))
        engine.place(lanes)
        await lanes.load()
        assert engine.idle
        tasks = [asyncio.ensure_future(run(lanes, b"sleep 0.2")) for _ in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(ProblemError) as refused:
            engine.admit()
        assert (refused.value.code, refused.value.retry_after) == ("overloaded", 1)
        assert not engine.idle
        await asyncio.gather(*tasks)
        assert engine.admit() is lanes
        engine.close_admission()
        with pytest.raises(ProblemError) as refused:
            engine.admit()
        assert refused.value.code == "draining"
    finally:
        await engine.close()


async def test_a_core_is_idle_beside_several_pictures_but_not_beside_a_lone_one() -> None:
    engine = Engine(Zygote("tests.serving.engine.hostile"), Settings(lanes=3), Limits(max_bytes=MEMORY))
    try:
        lanes = engine.make(str(SHIPPED_INT8))
        engine.place(lanes)
        await lanes.load()
        while lanes.usable < 3:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        tasks = []
        for idle in (False, True, False):
            tasks.append(asyncio.ensure_future(run(lanes, b"sleep 0.5")))
            await asyncio.sleep(0)
            assert engine.idle is idle
        await asyncio.gather(*tasks)
    finally:
        await engine.close()
