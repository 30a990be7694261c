"""Memory for request bodies, on a clock of the test's own."""

import asyncio
from collections.abc import Callable

import pytest

from serving.engine.budget import BYTES_PER_SECOND, CONTENDED_SECONDS, PIECE_BYTES, STEP_BYTES, BodyBudget, Lease
from serving.errors import ProblemError

MB = 1_000_000


async def upload(budget: BodyBudget, pieces: list[int], declared: int = 0, hold: asyncio.Event | None = None) -> None:
    """What a handler does: read the pieces, complete, and keep the body until ``hold``."""
    with budget.lease() as lease:
        async with asyncio.timeout(None) as time_left:
            for piece in pieces:
                for start in range(0, piece, PIECE_BYTES):
                    await lease.make_room(declared, time_left)
                    lease.received += min(PIECE_BYTES, piece - start)
                    await asyncio.sleep(0)
        lease.complete()
        if hold is not None:
            await hold.wait()


async def settle() -> None:
    for _ in range(50):
        await asyncio.sleep(0)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Set the event loop's clock forward."""

    def forward(seconds: float) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time
        monkeypatch.setattr(loop, "time", lambda: now() + seconds)

    return forward


async def test_every_byte_counts_from_the_first() -> None:
    budget, hold = BodyBudget(MB, seconds=5, wait_seconds=5), asyncio.Event()
    tasks = [asyncio.create_task(upload(budget, [1_000], 1_000, hold)) for _ in range(50)]
    await settle()
    assert budget.granted == 50_000
    hold.set()
    await asyncio.gather(*tasks)
    assert budget.granted == 0


async def test_small_bodies_count_but_do_not_wait_for_large_ones() -> None:
    budget, hold = BodyBudget(MB, seconds=5, wait_seconds=5), asyncio.Event()
    large = asyncio.create_task(upload(budget, [MB], MB, hold))
    await settle()
    waiting = asyncio.create_task(upload(budget, [MB], MB))
    await settle()
    small = asyncio.create_task(upload(budget, [100_000], 100_000, hold))
    await settle()
    assert budget.granted >= MB + 100_000
    assert not waiting.done()
    hold.set()
    await asyncio.gather(large, waiting, small)
    assert budget.granted == 0


async def test_only_the_oldest_body_goes_beyond_the_budget() -> None:
    budget, first, second = BodyBudget(MB, seconds=5, wait_seconds=5), asyncio.Event(), asyncio.Event()
    one = asyncio.create_task(upload(budget, [300_000] * 3, 900_000, first))
    other = asyncio.create_task(upload(budget, [300_000] * 3, 900_000, second))
    await settle()
    assert MB < budget.granted < 1_500_000  # the oldest was let go on beyond the budget, the other was not
    first.set()
    second.set()
    await one
    await other
    assert budget.granted == 0


async def test_what_is_granted_at_once_is_a_step_and_not_what_a_client_declares() -> None:
    budget = BodyBudget(32 * MB, seconds=5, wait_seconds=5)
    with budget.lease() as lease:
        async with asyncio.timeout(None) as time_left:
            await lease.make_room(20 * MB, time_left)
        assert budget.granted == STEP_BYTES


async def test_room_is_given_in_the_order_in_which_it_was_asked_for() -> None:
    budget, hold, order = BodyBudget(MB, seconds=5, wait_seconds=5), asyncio.Event(), list[int]()

    async def note(number: int) -> None:
        await upload(budget, [900_000], 900_000)
        order.append(number)

    first = asyncio.create_task(upload(budget, [900_000], 900_000, hold))
    await settle()
    tasks = []
    for number in range(10):
        tasks.append(asyncio.create_task(note(number)))
        await settle()
    hold.set()
    await asyncio.gather(first, *tasks)
    assert order == list(range(10))


@pytest.mark.parametrize("declared", [0, 20 * MB])
async def test_bodies_that_are_larger_than_the_budget_come_to_an_end_one_after_another(declared: int) -> None:
    budget = BodyBudget(4 * MB, seconds=5, wait_seconds=5)
    await asyncio.gather(*(upload(budget, [MB] * 20, declared) for _ in range(8)))
    assert budget.granted == 0


async def test_a_body_that_finds_no_room_in_time_is_told_that_the_service_is_overloaded() -> None:
    budget, hold = BodyBudget(MB, seconds=5, wait_seconds=0.05), asyncio.Event()
    one = asyncio.create_task(upload(budget, [900_000], 900_000, hold))
    await settle()
    with pytest.raises(ProblemError) as refused:
        await upload(budget, [900_000], 900_000)
    assert (refused.value.code, refused.value.retry_after) == ("overloaded", 1)
    hold.set()
    await one
    assert budget.granted == 0


async def test_a_client_that_leaves_while_it_waits_leaves_nothing_behind() -> None:
    budget, hold = BodyBudget(MB, seconds=5, wait_seconds=5), asyncio.Event()
    one = asyncio.create_task(upload(budget, [900_000], 900_000, hold))
    await settle()
    other = asyncio.create_task(upload(budget, [900_000], 900_000))
    await settle()
    other.cancel()
    await asyncio.gather(other, return_exceptions=True)
    hold.set()
    await one
    assert budget.granted == 0
    await upload(budget, [900_000], 900_000)


async def sending(lease: Lease, received: int) -> None:
    """A body of 20 MB that has come so far and no further, until the test says so."""
    with lease:
        async with asyncio.timeout(None) as time_left:
            await lease.make_room(20 * MB, time_left)
            lease.received = received
            await asyncio.Event().wait()


async def test_a_slow_body_goes_on_while_it_keeps_a_rate_and_is_cut_off_below_it(
    clock: Callable[[float], None],
) -> None:
    budget = BodyBudget(32 * MB, seconds=15, wait_seconds=5)
    leases = [budget.lease() for _ in range(4)]
    honest, stalled, *dripping = leases
    # One that came fast at first has no credit from that.
    received = {honest: 0, stalled: 100 * BYTES_PER_SECOND, dripping[0]: 0, dripping[1]: 10}
    tasks = [asyncio.create_task(sending(lease, size)) for lease, size in received.items()]
    await settle()
    budget.check()
    for seconds in (7, 14):
        clock(7)
        honest.received = seconds * BYTES_PER_SECOND
        budget.check()
        await settle()
        assert not any(task.done() for task in tasks)
    clock(2)
    budget.check()
    for task in tasks[1:]:
        with pytest.raises(TimeoutError):
            await task
    assert not tasks[0].done()
    tasks[0].cancel()


async def test_while_others_wait_a_body_must_come_at_once(clock: Callable[[float], None]) -> None:
    budget = BodyBudget(MB, seconds=15, wait_seconds=60)
    dripping = [asyncio.create_task(sending(budget.lease(), 1)) for _ in range(2)]
    await settle()
    clock(CONTENDED_SECONDS + 0.1)
    budget.check()
    await settle()
    assert not any(task.done() for task in dripping)
    other = asyncio.create_task(upload(budget, [900_000], 900_000))
    await settle()
    assert not other.done()
    budget.check()
    for task in dripping:
        with pytest.raises(TimeoutError):
            await task
    await other
    assert budget.granted == 0


async def test_waiting_for_memory_is_not_the_client_s_slowness(clock: Callable[[float], None]) -> None:
    budget, hold = BodyBudget(MB, seconds=5, wait_seconds=60), asyncio.Event()
    one = asyncio.create_task(upload(budget, [900_000], 900_000, hold))
    await settle()
    other = asyncio.create_task(upload(budget, [900_000], 900_000))
    await settle()
    clock(30)
    budget.check()
    hold.set()
    await asyncio.gather(one, other)
