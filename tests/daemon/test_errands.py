"""Small files share threads: in order, demand first, and one without an answer holds up nobody else."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from hotshelf_daemon.ingest.errands import ROUND_S, STUCK_S, Errands
from hotshelf_daemon.ingest.lanes import Lanes

SOON_S = 10


def demand() -> bool:
    return False


def prefetch() -> bool:
    return True


@contextlib.contextmanager
def threads() -> Iterator[ThreadPoolExecutor]:
    pool = ThreadPoolExecutor(16)
    try:
        yield pool
    finally:
        pool.shutdown()


def tell(story: Callable[[Errands, Lanes], Coroutine[Any, Any, None]], *, lanes: int) -> None:
    async def within() -> None:
        with threads() as pool:
            there = Lanes(lanes, lambda _: lanes)
            async with asyncio.timeout(SOON_S):
                await story(Errands(there, pool), there)

    asyncio.run(within())


async def without_an_answer(errands: Errands, is_prefetch: Callable[[], bool], answered: threading.Event) -> asyncio.Task[bool]:
    """An errand that has begun, and does not end before it is `answered`."""
    begun, loop = asyncio.Event(), asyncio.get_running_loop()

    def work(_: bool) -> bool:
        loop.call_soon_threadsafe(begun.set)
        return answered.wait(SOON_S)

    task = asyncio.create_task(errands.run("o", is_prefetch, work))
    await begun.wait()
    return task


def test_what_waits_is_done_in_order_and_each_hears_its_own_answer() -> None:
    done = list[int]()

    async def story(errands: Errands, lanes: Lanes) -> None:
        def work(n: int) -> Callable[[bool], int]:
            def square(_: bool) -> int:
                done.append(n)
                return n * n

            return square

        assert await asyncio.gather(*(errands.run("o", demand, work(n)) for n in range(50))) == [n * n for n in range(50)]
        assert done == [*range(50)]

    tell(story, lanes=1)


def test_a_failure_is_its_callers_and_the_next_ones_are_done() -> None:
    async def story(errands: Errands, lanes: Lanes) -> None:
        def fails(_: bool) -> None:
            raise ValueError("no such bytes")

        failing, fine = errands.run("o", demand, fails), errands.run("o", demand, lambda _: "fine")
        heard = await asyncio.gather(failing, fine, return_exceptions=True)
        assert isinstance(heard[0], ValueError)
        assert heard[1] == "fine"

    tell(story, lanes=1)


def test_one_that_is_given_up_without_an_answer_holds_no_lane() -> None:
    answered = threading.Event()

    async def story(errands: Errands, lanes: Lanes) -> None:
        stuck = await without_an_answer(errands, demand, answered)
        behind = asyncio.create_task(errands.run("o", demand, lambda _: "came"))
        stuck.cancel()
        assert await behind == "came"
        answered.set()
        with pytest.raises(asyncio.CancelledError):
            await stuck

    tell(story, lanes=1)


def test_one_that_gets_no_answer_holds_up_none_that_wait_behind_it() -> None:
    answered = threading.Event()

    async def story(errands: Errands, lanes: Lanes) -> None:
        stuck = asyncio.create_task(errands.run("o", demand, lambda _: answered.wait(SOON_S)))
        assert await asyncio.gather(*(errands.run("o", demand, lambda _: "came") for _ in range(20))) == ["came"] * 20
        assert not stuck.done()
        answered.set()
        assert await stuck

    tell(story, lanes=2)


@pytest.mark.parametrize("is_warm", [True, False], ids=["brief ones before", "none before"])
def test_nor_those_that_come_later(is_warm: bool) -> None:
    answered = threading.Event()

    async def story(errands: Errands, lanes: Lanes) -> None:
        if is_warm:
            await asyncio.gather(*(errands.run("o", demand, lambda _: None) for _ in range(100)))
        stuck = await without_an_answer(errands, demand, answered)
        assert await asyncio.gather(*(errands.run("o", demand, lambda _: "came") for _ in range(3))) == ["came"] * 3
        assert not stuck.done()
        answered.set()
        assert await stuck

    tell(story, lanes=2)


def test_demand_does_not_wait_for_a_prefetch_that_stands_still() -> None:
    answered = threading.Event()

    async def story(errands: Errands, lanes: Lanes) -> None:
        standing = await without_an_answer(errands, prefetch, answered)
        loop = asyncio.get_running_loop()
        asked = loop.time()
        assert await errands.run("o", demand, lambda _: "came") == "came"
        assert loop.time() - asked < STUCK_S
        answered.set()
        assert await standing

    tell(story, lanes=2)


def test_one_that_is_done_and_given_up_before_it_was_told_takes_no_lane_from_the_next() -> None:
    go = {name: threading.Event() for name in ("first", "second", "third")}
    at_work, order = list[str](), list[str]()
    entered = {name: threading.Event() for name in ("first", "second", "third")}

    def held(name: str) -> Callable[[bool], None]:
        def work(_: bool) -> None:
            order.append(f"{name} beside {at_work}")
            at_work.append(name)
            entered[name].set()
            go[name].wait(SOON_S)
            at_work.remove(name)

        return work

    async def story(errands: Errands, lanes: Lanes) -> None:
        first, second, third = (asyncio.create_task(errands.run("o", demand, held(name))) for name in entered)
        while not entered["first"].is_set():
            await asyncio.sleep(0)
        go["first"].set()
        assert entered["second"].wait(SOON_S)  # the loop has no time to hear that the first is done
        first.cancel()
        await asyncio.wait([first])
        for _ in range(10):
            await asyncio.sleep(0)
        go["second"].set()
        go["third"].set()
        await asyncio.gather(second, third)
        assert order == ["first beside []", "second beside []", "third beside []"]

    tell(story, lanes=1)


def test_without_threads_to_be_had_everybody_is_told() -> None:
    class NoThreads(ThreadPoolExecutor):
        def submit(self, *_: Any, **__: Any) -> Any:
            raise RuntimeError("can't start new thread")

    async def story() -> None:
        lanes = Lanes(2, lambda _: 2)
        errands = Errands(lanes, NoThreads(1))
        async with asyncio.timeout(SOON_S):
            heard = await asyncio.gather(
                *(errands.run("o", demand, lambda _: "came") for _ in range(5)), return_exceptions=True
            )
        assert [str(one) for one in heard] == ["can't start new thread"] * 5
        assert lanes.idle.is_set()

    asyncio.run(story())


def test_one_that_is_given_up_before_its_turn_is_never_begun() -> None:
    go, begun = threading.Event(), list[str]()

    async def story(errands: Errands, lanes: Lanes) -> None:
        first = asyncio.create_task(errands.run("o", demand, lambda _: go.wait(SOON_S)))
        second = asyncio.create_task(errands.run("o", demand, lambda _: begun.append("second")))
        third = asyncio.create_task(errands.run("o", demand, lambda _: begun.append("third")))
        await asyncio.sleep(0)
        second.cancel()
        await asyncio.wait([second])
        go.set()
        await asyncio.gather(first, third)
        assert begun == ["third"]

    tell(story, lanes=1)


def test_what_somebody_waits_for_goes_before_what_nobody_does() -> None:
    go, order = threading.Event(), list[tuple[str, bool]]()

    async def story(errands: Errands, lanes: Lanes) -> None:
        first = asyncio.create_task(errands.run("o", demand, lambda _: go.wait(SOON_S)))
        await asyncio.sleep(0)

        def noted(name: str) -> Callable[[bool], None]:
            return lambda aside: order.append((name, aside))

        late = [
            asyncio.create_task(errands.run("o", is_prefetch, noted(name)))
            for name, is_prefetch in (("prefetched", prefetch), ("wanted", demand))
        ]
        await asyncio.sleep(0)
        go.set()
        await asyncio.gather(first, *late)
        assert order == [("wanted", False), ("prefetched", True)]

    tell(story, lanes=1)


def test_where_each_takes_long_as_many_are_at_work_as_have_lanes() -> None:
    together = threading.Barrier(8)

    async def story(errands: Errands, lanes: Lanes) -> None:
        assert lanes.limit("o") == 8
        await asyncio.gather(*(errands.run("o", demand, lambda _: together.wait(SOON_S)) for _ in range(16)))

    tell(story, lanes=8)


def test_where_each_is_brief_few_threads_do_them_all() -> None:
    at_work, most, lock = 0, 0, threading.Lock()

    def brief(_: bool) -> None:
        nonlocal at_work, most
        with lock:
            at_work, most = at_work + 1, max(most, at_work + 1)
        until = time.monotonic() + 0.001
        while time.monotonic() < until:
            pass
        with lock:
            at_work -= 1

    async def story(errands: Errands, lanes: Lanes) -> None:
        nonlocal most
        await asyncio.gather(*(errands.run("o", demand, brief) for _ in range(64)))
        most = 0
        await asyncio.gather(*(errands.run("o", demand, brief) for _ in range(16)))
        assert most <= 4

    tell(story, lanes=8)


def test_a_lane_is_given_back_in_time_for_others_who_wait_for_it() -> None:
    """Two origins share the only lane: neither waits until the other has nothing left to do."""
    order = list[str]()

    async def story(errands: Errands, lanes: Lanes) -> None:
        def slow(name: str) -> Callable[[bool], None]:
            def work(_: bool) -> None:
                order.append(name)
                time.sleep(ROUND_S / 2)

            return work

        await asyncio.gather(*(errands.run(name, demand, slow(name)) for name in ("a", "b") for _ in range(6)))
        assert order.index("b") < 6

    tell(story, lanes=1)
