import asyncio
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from serving.engine import Engine, _quota, usable_cores
from serving.problems import ProblemError


async def test_work_runs_off_the_event_loop_and_its_result_comes_back() -> None:
    engine = Engine(lanes=2, max_queue=10, deadline=5)
    done = await engine.run(threading.current_thread)
    assert done.result.name.startswith("lane-")
    assert done.queued >= 0
    await engine.close()


async def test_the_event_loop_goes_on_while_lanes_work() -> None:
    engine = Engine(lanes=1, max_queue=10, deadline=5)
    task = asyncio.ensure_future(engine.run(lambda: time.sleep(0.3)))
    turns = 0
    while not task.done():
        await asyncio.sleep(0.01)
        turns += 1
    assert turns > 5
    await engine.close()


async def test_what_work_raises_is_raised_here_and_the_lane_lives() -> None:
    engine = Engine(lanes=1, max_queue=10, deadline=5)
    with pytest.raises(ZeroDivisionError):
        await engine.run(lambda: 1 / 0)
    assert (await engine.run(lambda: 2)).result == 2
    await engine.close()


async def test_work_is_done_in_the_order_it_came() -> None:
    engine = Engine(lanes=1, max_queue=100, deadline=5)
    order: list[int] = []
    await asyncio.gather(*(engine.run(partial(order.append, n)) for n in range(50)))
    assert order == list(range(50))
    await engine.close()


async def test_cancelled_work_is_skipped() -> None:
    engine = Engine(lanes=1, max_queue=10, deadline=5)
    gate, done = threading.Event(), []
    first = asyncio.ensure_future(engine.run(gate.wait))
    second = asyncio.ensure_future(engine.run(lambda: done.append("second")))
    await asyncio.sleep(0.05)
    assert (engine.busy, engine.depth) == (1, 1)
    second.cancel()
    await asyncio.sleep(0.01)  # a cancelled task learns of it at the loop's next turn
    gate.set()
    await first
    await engine.run(lambda: done.append("third"))
    assert done == ["third"]
    assert (engine.busy, engine.depth) == (0, 0)
    await engine.close()


async def test_closing_finishes_what_was_accepted() -> None:
    engine = Engine(lanes=1, max_queue=10, deadline=5)
    tasks = [asyncio.ensure_future(engine.run(partial(int, n))) for n in range(5)]
    await asyncio.sleep(0)
    await engine.close()
    assert [(await task).result for task in tasks] == list(range(5))
    with pytest.raises(ProblemError) as refused:
        engine.admit()
    assert refused.value.code == "draining"


async def test_retry_after_follows_the_measured_time_and_the_queue() -> None:
    engine = Engine(lanes=1, max_queue=4, deadline=60)
    for _ in range(20):
        await engine.run(lambda: time.sleep(0.05))
    gate = threading.Event()
    tasks = [asyncio.ensure_future(engine.run(lambda: gate.wait(10))) for _ in range(5)]
    await asyncio.sleep(0.01)
    with pytest.raises(ProblemError) as refused:
        engine.admit()
    assert refused.value.code == "overloaded"
    assert refused.value.retry_after == 1  # five pictures of some 50 ms
    gate.set()
    await asyncio.gather(*tasks)
    engine.admit()

    await engine.run(lambda: time.sleep(5))  # the mean is now over a quarter of a second
    gate.clear()
    tasks = [asyncio.ensure_future(engine.run(lambda: gate.wait(10))) for _ in range(5)]
    await asyncio.sleep(0.01)
    with pytest.raises(ProblemError) as refused:
        engine.admit()
    assert refused.value.retry_after is not None
    assert refused.value.retry_after > 1
    gate.set()
    await asyncio.gather(*tasks)
    await engine.close()


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "150000 100000"}, 1.5),
        ({"cpu.max": "max 100000"}, None),
        ({"cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "100000"}, 0.5),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ({}, None),
    ],
)
def test_a_container_s_quota_counts(tmp_path: Path, files: dict[str, str], expected: float | None) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    assert _quota(tmp_path) == expected
    assert usable_cores() >= 1
