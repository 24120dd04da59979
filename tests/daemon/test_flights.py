"""Single flight: one work for everyone who asks, ended when nobody does."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from hotshelf_daemon.flights import Flights, first_failure

DEADLINE_S = 10


def run(story: Coroutine[Any, Any, None]) -> None:
    async def within() -> None:
        async with asyncio.timeout(DEADLINE_S):
            await story

    asyncio.run(within())


class Work:
    """Counts how often it was begun; ends when it is let go or cancelled."""

    def __init__(self) -> None:
        self.begun, self.cancelled = 0, 0
        self.go = asyncio.Event()
        self.error: Exception | None = None

    async def __call__(self) -> int:
        self.begun += 1
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.error:
            raise self.error
        return self.begun


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_everyone_who_asks_meanwhile_shares_one_work() -> None:
    async def story() -> None:
        flights, work = Flights[int](), Work()
        waiting = [asyncio.create_task(flights.join("k", work)) for _ in range(64)]
        await settle()
        work.go.set()
        assert await asyncio.gather(*waiting) == [1] * 64
        assert "k" not in flights
        assert await flights.join("k", work) == 2

    run(story())


def test_other_keys_are_other_works() -> None:
    async def story() -> None:
        flights, work = Flights[int](), Work()
        work.go.set()
        assert sorted(await asyncio.gather(flights.join("a", work), flights.join("b", work))) == [1, 2]

    run(story())


def test_a_failure_is_everyone_s_and_the_next_one_begins_anew() -> None:
    async def story() -> None:
        flights, work = Flights[int](), Work()
        work.error = ValueError("broken")
        waiting = [asyncio.create_task(flights.join("k", work)) for _ in range(3)]
        await settle()
        work.go.set()
        assert all(isinstance(e, ValueError) for e in await asyncio.gather(*waiting, return_exceptions=True))
        work.error = None
        assert await flights.join("k", work) == 2

    run(story())


def test_one_who_leaves_does_not_end_it_for_the_others() -> None:
    async def story() -> None:
        flights, work = Flights[int](), Work()
        first, second = (asyncio.create_task(flights.join("k", work)) for _ in range(2))
        await settle()
        first.cancel()
        await settle()
        work.go.set()
        assert await second == 1
        assert (first.cancelled(), work.cancelled) == (True, 0)

    run(story())


def test_the_last_one_who_leaves_ends_it_and_waits_for_the_end() -> None:
    async def story() -> None:
        flights, work = Flights[int](), Work()
        waiting = [asyncio.create_task(flights.join("k", work)) for _ in range(2)]
        await settle()
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        assert (work.cancelled, "k" in flights, len(flights)) == (1, False, 0)

    run(story())


def test_who_comes_while_it_is_being_ended_begins_a_new_one() -> None:
    async def story() -> None:
        flights, work = Flights[int](), Work()
        first = asyncio.create_task(flights.join("k", work))
        await settle()
        first.cancel()
        await asyncio.sleep(0)
        second = asyncio.create_task(flights.join("k", work))
        await settle()
        work.go.set()
        assert await second == 2

    run(story())


def test_the_failure_that_ended_a_group_is_told_from_its_consequences() -> None:
    cause = ValueError("cause")
    group = BaseExceptionGroup("all", [asyncio.CancelledError(), BaseExceptionGroup("some", [cause])])
    assert first_failure(group) is cause
    only = asyncio.CancelledError()
    assert first_failure(BaseExceptionGroup("all", [only])) is only


def test_an_error_that_nobody_waited_for_leaves_no_warning(recwarn: pytest.WarningsRecorder) -> None:
    async def story() -> None:
        flights, work = Flights[int](), Work()
        work.error = ValueError("nobody hears this")
        task = asyncio.create_task(flights.join("k", work))
        await settle()
        work.go.set()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    run(story())
    assert not recwarn.list
