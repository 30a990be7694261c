import asyncio

import pytest

from serving.engine.budget import FREE_BYTES, STALL_SECONDS, STEP_BYTES, Pool
from serving.errors import ProblemError

MB = 1_000_000


async def upload(
    pool: Pool, pieces: list[int], declared: int = 0, hold: asyncio.Event | None = None, seconds: float = 5
) -> None:
    """What a handler does: read the pieces, complete, and keep the body until ``hold``."""
    with pool.lease() as lease:
        async with asyncio.timeout(seconds) as time_left:
            for piece in pieces:
                await lease.take(piece, declared, time_left)
                await asyncio.sleep(0)
        lease.complete()
        if hold is not None:
            await hold.wait()


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_small_bodies_never_wait_and_are_not_counted() -> None:
    pool, hold = Pool(1, seconds=5), asyncio.Event()
    tasks = [asyncio.create_task(upload(pool, [FREE_BYTES], FREE_BYTES, hold)) for _ in range(50)]
    await settle()
    assert pool.granted == 0
    hold.set()
    await asyncio.gather(*tasks)


async def test_a_large_body_waits_until_there_is_room_for_all_of_it() -> None:
    pool, first, second = Pool(MB, seconds=5), asyncio.Event(), asyncio.Event()
    one = asyncio.create_task(upload(pool, [300_000] * 3, 900_000, first))
    other = asyncio.create_task(upload(pool, [300_000] * 3, 900_000, second))
    await settle()
    assert pool.granted == 900_000 - FREE_BYTES
    assert not other.done()
    first.set()
    await one
    await settle()
    assert pool.granted == 900_000 - FREE_BYTES
    second.set()
    await other
    assert pool.granted == 0


async def test_room_is_given_in_the_order_in_which_it_was_asked_for() -> None:
    pool, hold, order = Pool(MB, seconds=5), asyncio.Event(), list[int]()

    async def note(number: int) -> None:
        await upload(pool, [900_000], 900_000)
        order.append(number)

    first = asyncio.create_task(upload(pool, [900_000], 900_000, hold))
    await settle()
    tasks = []
    for number in range(10):
        tasks.append(asyncio.create_task(note(number)))
        await settle()
    hold.set()
    await asyncio.gather(first, *tasks)
    assert order == list(range(10))


async def test_one_body_larger_than_the_pool_is_let_in_alone() -> None:
    pool = Pool(MB, seconds=5)
    await upload(pool, [MB] * 20, 20 * MB)
    assert pool.granted == 0


async def test_bodies_of_unknown_length_do_not_wait_for_each_other_for_ever() -> None:
    pool = Pool(4 * MB, seconds=5)
    await asyncio.gather(*(upload(pool, [STEP_BYTES // 2] * 8) for _ in range(8)))
    assert pool.granted == 0


async def test_a_body_that_is_there_holds_only_what_it_is() -> None:
    pool, hold = Pool(10 * MB, seconds=5), asyncio.Event()
    one = asyncio.create_task(upload(pool, [200_000], 0, hold))
    await settle()
    assert pool.granted == 200_000 - FREE_BYTES
    hold.set()
    await one


async def test_a_body_that_finds_no_room_in_time_is_told_that_the_service_is_overloaded() -> None:
    pool, hold = Pool(MB, seconds=0.05), asyncio.Event()
    one = asyncio.create_task(upload(pool, [900_000], 900_000, hold))
    await settle()
    with pytest.raises(ProblemError) as refused:
        await upload(pool, [900_000], 900_000)
    assert (refused.value.code, refused.value.retry_after) == ("overloaded", 1)
    hold.set()
    await one
    assert (pool.granted, len(pool._line)) == (0, 0)


async def test_the_client_s_time_stands_still_while_its_bytes_wait_for_others() -> None:
    pool, hold = Pool(MB, seconds=5), asyncio.Event()
    one = asyncio.create_task(upload(pool, [900_000], 900_000, hold))
    await settle()
    other = asyncio.create_task(upload(pool, [900_000], 900_000, seconds=0.2))
    await asyncio.sleep(0.5)
    hold.set()
    await asyncio.gather(one, other)


async def test_a_client_that_leaves_while_it_waits_leaves_nothing_behind() -> None:
    pool, hold = Pool(MB, seconds=5), asyncio.Event()
    one = asyncio.create_task(upload(pool, [900_000], 900_000, hold))
    await settle()
    other = asyncio.create_task(upload(pool, [900_000], 900_000))
    await settle()
    other.cancel()
    await asyncio.gather(other, return_exceptions=True)
    hold.set()
    await one
    assert (pool.granted, len(pool._leases), len(pool._line)) == (0, 0, 0)


async def test_who_stops_sending_is_cut_off_once_others_wait_and_not_before() -> None:
    pool = Pool(MB, seconds=10)

    async def stall() -> None:
        with pool.lease() as lease:
            async with asyncio.timeout(60) as time_left:
                await lease.take(500_000, 900_000, time_left)
                await asyncio.sleep(60)

    stalled = asyncio.create_task(stall())
    await asyncio.sleep(STALL_SECONDS + 0.1)
    pool.check()
    await settle()
    assert not stalled.done()
    other = asyncio.create_task(upload(pool, [900_000], 900_000))
    await settle()
    pool.check()
    with pytest.raises(TimeoutError):
        await stalled
    await other
    assert pool.granted == 0
