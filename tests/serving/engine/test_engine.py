import asyncio
import gc
import os
import threading
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

import pytest

from serving.engine.engine import MAX_STUCK, ClientGoneError, Engine, LaneDiedError
from serving.errors import ProblemError

Make = Callable[..., Engine]


@pytest.fixture
async def make() -> AsyncIterator[Make]:
    """Make engines that are closed when the test ends."""
    engines: list[Engine] = []

    def begin(lanes: int = 1, max_queue: int = 100, deadline: float = 5) -> Engine:
        engines.append(Engine(lanes, max_queue, deadline))
        return engines[-1]

    yield begin
    for engine in engines:
        await engine.close()


def until(event: threading.Event) -> Callable[[bool], bool]:
    return lambda _: event.wait(20)


def note(order: list[Any], what: object, _: bool) -> None:
    order.append(what)


async def test_work_runs_off_the_event_loop_and_its_result_comes_back(make: Make) -> None:
    done = await make(lanes=2).run(lambda _: threading.current_thread())
    assert done.result.name.startswith("lane-")
    assert done.queued >= 0


async def test_the_event_loop_goes_on_while_lanes_work(make: Make) -> None:
    gate, turns = threading.Event(), 0
    task = asyncio.ensure_future(make().run(until(gate)))
    while not task.done():
        await asyncio.sleep(0)
        turns += 1
        if turns == 50:
            gate.set()
    assert turns >= 50


async def test_what_work_raises_is_raised_here_and_the_lane_lives(make: Make) -> None:
    engine = make()
    with pytest.raises(ZeroDivisionError):
        await engine.run(lambda _: 1 / 0)
    assert (await engine.run(lambda _: 2)).result == 2


async def test_requests_are_served_in_the_order_they_came(make: Make) -> None:
    engine, order = make(), list[int]()
    await asyncio.gather(*(engine.run(partial(note, order, n)) for n in range(50)))
    assert order == list(range(50))


async def test_a_single_picture_waits_for_no_more_than_one_of_a_batch(make: Make) -> None:
    engine, gate, order = make(), threading.Event(), list[str]()
    first = asyncio.ensure_future(engine.run(until(gate)))
    batch = [engine.run(partial(note, order, f"batch {n}"), "batch") for n in range(10)]
    tasks = [asyncio.ensure_future(work) for work in batch]
    await asyncio.sleep(0)
    tasks.append(asyncio.ensure_future(engine.run(lambda _: order.append("single"), "single")))
    await asyncio.sleep(0)
    gate.set()
    await asyncio.gather(first, *tasks)
    assert order[:3] == ["batch 0", "single", "batch 1"]


async def test_work_is_told_whether_it_has_the_engine_to_itself(make: Make) -> None:
    engine, gate = make(), threading.Event()
    assert (await engine.run(lambda alone: alone)).result is True
    first = asyncio.ensure_future(engine.run(until(gate)))
    second = asyncio.ensure_future(engine.run(lambda alone: alone))
    third = asyncio.ensure_future(engine.run(lambda alone: alone))
    await asyncio.sleep(0)
    gate.set()
    await asyncio.gather(first, second, third)
    assert second.result().result is False


async def test_cancelled_work_is_skipped(make: Make) -> None:
    engine, gate, done = make(), threading.Event(), list[str]()
    first = asyncio.ensure_future(engine.run(until(gate)))
    second = asyncio.ensure_future(engine.run(lambda _: done.append("second")))
    await asyncio.sleep(0.05)
    assert (engine.busy, engine.depth) == (1, 1)
    second.cancel()
    await asyncio.sleep(0.01)  # a cancelled task learns of it at the loop's next turn
    gate.set()
    await first
    await engine.run(lambda _: done.append("third"))
    assert done == ["third"]
    assert (engine.busy, engine.depth) == (0, 0)


async def test_work_that_nobody_wants_any_more_is_not_done(make: Make) -> None:
    done = list[str]()
    with pytest.raises(ClientGoneError):
        await make().run(lambda _: done.append("unwanted"), wanted=lambda: False)
    assert not done


async def test_closing_finishes_what_was_accepted(make: Make) -> None:
    engine = make()
    tasks = [asyncio.ensure_future(engine.run(lambda _: "done")) for _ in range(5)]
    await asyncio.sleep(0)
    await engine.close()
    assert [(await task).result for task in tasks] == ["done"] * 5
    with pytest.raises(ProblemError) as refused:
        engine.admit()
    assert refused.value.code == "draining"


async def test_what_waits_too_long_is_given_up_and_never_done(make: Make) -> None:
    engine, gate, done = make(deadline=0.2), threading.Event(), list[str]()
    first = asyncio.ensure_future(engine.run(until(gate)))
    await asyncio.sleep(0)
    with pytest.raises(ProblemError) as late:
        await engine.run(lambda _: done.append("late"))
    assert late.value.code == "deadline_exceeded"
    assert late.value.retry_after is not None
    gate.set()
    with pytest.raises(ProblemError):
        await first  # it took longer than its deadline as well
    await engine.run(lambda _: done.append("next"))
    assert done == ["next"]


def calculate(seconds: float) -> Callable[[bool], None]:
    """Work that takes so much processor time."""

    def work(_: bool) -> None:
        end = time.thread_time() + seconds
        while time.thread_time() < end:
            pass

    return work


async def test_retry_after_follows_what_pictures_cost_and_the_queue(make: Make) -> None:
    engine = make(max_queue=20, deadline=60)
    gate = threading.Event()

    async def refused() -> int:
        tasks = [asyncio.ensure_future(engine.run(until(gate))) for _ in range(21)]
        await asyncio.sleep(0.01)
        with pytest.raises(ProblemError) as problem:
            engine.admit()
        for task in tasks[1:]:
            task.cancel()
        gate.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        gate.clear()
        assert problem.value.code == "overloaded"
        assert problem.value.retry_after is not None
        return problem.value.retry_after

    for _ in range(20):
        await engine.run(calculate(0.02))
    assert await refused() == 1  # 21 pictures of some 20 ms
    engine.admit()
    for _ in range(20):
        await engine.run(calculate(0.15))
    assert 2 <= await refused() <= 15  # 21 of some 100 ms by now, and of more on a busy machine


async def test_retry_after_hardly_follows_a_moment_in_which_all_is_slow(make: Make) -> None:
    engine = make(lanes=2)
    for _ in range(50):
        await engine.run(calculate(0.005))
    calm = engine._pace.seconds

    def slowed(_: bool) -> None:
        calculate(0.005)(_)
        time.sleep(0.015)

    for _ in range(30):
        await engine.run(slowed)
    assert calm < engine._pace.seconds < 2 * calm  # rather than four times
    for _ in range(300):
        await engine.run(slowed)
    assert engine._pace.seconds > 2 * calm  # a quota, which lasts


async def test_retry_after_is_never_longer_than_anything_waits(make: Make) -> None:
    engine = make(deadline=3)
    for _ in range(3):
        await engine.run(calculate(0.5))
    gate = threading.Event()
    tasks = [asyncio.ensure_future(engine.run(until(gate))) for _ in range(50)]
    await asyncio.sleep(0)
    assert engine.retry_after() == 3
    gate.set()
    await asyncio.gather(*tasks)


async def test_what_is_refused_says_nothing_of_what_pictures_cost(make: Make) -> None:
    engine = make()
    for size in [20_000, 4_000_000] * 20:
        await engine.run(calculate(0.002 + 5e-9 * size), size=size)
    before = (engine._pace.seconds, engine._pace.head_start(4_000_000))
    for _ in range(50):
        with pytest.raises(ZeroDivisionError):
            await engine.run(lambda _: 1 / 0, size=20_000_000)
    assert (engine._pace.seconds, engine._pace.head_start(4_000_000)) == before
    assert before[1] > 0.005


async def test_of_those_that_came_together_the_one_that_will_take_long_starts_first(make: Make) -> None:
    engine, gate, order = make(), threading.Event(), list[Any]()
    for _ in range(20):  # it learns what sizes cost
        await engine.run(calculate(0.001), size=10_000)
        await engine.run(calculate(0.02), size=1_000_000)
    first = asyncio.ensure_future(engine.run(until(gate)))
    await asyncio.sleep(0)
    small = [asyncio.ensure_future(engine.run(partial(note, order, n), size=10_000)) for n in range(5)]
    large = asyncio.ensure_future(engine.run(partial(note, order, "large"), size=20_000_000))
    await asyncio.sleep(0)
    gate.set()
    await asyncio.gather(first, large, *small)
    assert order == ["large", *range(5)]


async def places(engine: Engine, jobs: int) -> list[set[int]]:
    """The cores that lanes may use, told by so many pieces of work at a time."""
    met = threading.Barrier(jobs)

    def where(_: bool) -> set[int]:
        met.wait(20)  # so that each lane has one
        return os.sched_getaffinity(0)

    return [done.result for done in await asyncio.gather(*(engine.run(where) for _ in range(jobs)))]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="threads cannot be kept to cores here")
async def test_lanes_that_are_all_busy_keep_to_cores_of_their_own_if_there_are_as_many(make: Make) -> None:
    cores = os.sched_getaffinity(0)
    engine = make(lanes=len(cores))
    kept = await places(engine, len(cores))
    assert all(len(core) == 1 for core in kept)
    assert set.union(*kept) == cores
    if len(cores) > 1:
        assert await places(engine, 1) == [cores], "the core may be somebody else's"
    assert await places(make(lanes=len(cores) + 1), len(cores) + 1) == [cores] * (len(cores) + 1)
    assert os.sched_getaffinity(0) == cores  # the event loop's own are not touched


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="threads cannot be kept to cores here")
async def test_lanes_work_where_threads_may_not_be_kept_to_cores(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def forbidden(_: int, cores: set[int]) -> None:
        asked.append(cores)
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "sched_setaffinity", forbidden)
    cores = os.sched_getaffinity(0)
    engine = make(lanes=len(cores))
    assert await places(engine, len(cores)) == [cores] * len(cores)
    engine.check()
    assert engine.replaced == 0
    assert asked or len(cores) == 1


def end_the_thread(_: bool) -> None:
    raise SystemExit


async def test_a_lane_that_dies_takes_its_picture_alone_and_is_replaced(make: Make) -> None:
    engine = make(lanes=1)
    with pytest.raises(LaneDiedError):
        await engine.run(end_the_thread)
    waiting = asyncio.ensure_future(engine.run(lambda _: "waited"))
    await asyncio.to_thread(engine._crew[0].thread.join)
    engine.check()
    assert engine.replaced == 1
    assert (await waiting).result == "waited"
    assert (engine.busy, engine.depth) == (0, 0)


async def test_a_lane_that_is_stuck_is_replaced_and_ends_once_it_comes_back(make: Make) -> None:
    engine, gate = make(lanes=1, deadline=0.3), threading.Event()
    for stuck in range(1, MAX_STUCK + 1):
        with pytest.raises(ProblemError):
            await engine.run(until(gate))
        assert not engine.exhausted
        await asyncio.sleep(1)
        engine.check()
        assert engine.stuck == engine.replaced == stuck
        assert (engine.busy, engine.depth) == (0, 0)
        assert (await engine.run(lambda _: "on")).result == "on"
    assert engine.exhausted
    gate.set()
    for lane in list(engine._stuck):
        await asyncio.to_thread(lane.thread.join)
    engine.check()
    assert not engine.exhausted
    assert (engine.busy, engine.depth) == (0, 0)


async def test_a_clock_that_jumps_back_changes_nothing(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, now = make(), time.time()
    monkeypatch.setattr(time, "time", lambda: now - 86_400)
    done = await engine.run(lambda _: "on")
    assert done.result == "on"
    assert 0 <= done.queued < 60


async def test_an_answered_picture_is_not_kept(make: Make) -> None:
    class Picture:
        alive = 0

        def __init__(self) -> None:
            Picture.alive += 1

        def __del__(self) -> None:
            Picture.alive -= 1

    engine = make()
    gc.disable()
    try:
        for _ in range(20):
            await engine.run(partial(lambda _, __: None, Picture()))
        await asyncio.sleep(0.01)
        assert Picture.alive <= engine.lanes  # a lane lets go of its last one with the next
    finally:
        gc.enable()
