"""Ranged reads under way are bounded, demand goes before prefetch, and files take turns."""

from __future__ import annotations

import asyncio

from hotshelf_daemon.ingest.lanes import Lanes


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


class Reads:
    def __init__(self, most: int, **most_of: int) -> None:
        self.lanes = Lanes(most, lambda origin: most_of.get(origin, most))
        self.order, self.under_way, self.most = list[str](), 0, 0
        self.go = asyncio.Event()

    def start(self, name: str, *, prefetch: bool = False, origin: str = "o", turn: int = 0) -> asyncio.Task[None]:
        async def read() -> None:
            async with self.lanes.take(origin, lambda: prefetch, turn=turn):
                self.order.append(name)
                self.under_way += 1
                self.most = max(self.most, self.under_way)
                await self.go.wait()
                self.under_way -= 1

        return asyncio.create_task(read())


def test_no_more_than_so_many_are_under_way() -> None:
    async def story() -> None:
        reads = Reads(3)
        tasks = [reads.start(str(n)) for n in range(10)]
        await settle()
        assert reads.under_way == 3
        reads.go.set()
        await asyncio.gather(*tasks)
        assert (reads.most, len(reads.order)) == (3, 10)

    asyncio.run(story())


def test_an_origin_has_a_bound_of_its_own_and_all_have_one_together() -> None:
    async def story() -> None:
        reads = Reads(4, small=1)
        tasks = [reads.start(f"{origin}{n}", origin=origin) for origin in ("small", "big") for n in range(5)]
        await settle()
        assert sorted(reads.order) == ["big0", "big1", "big2", "small0"]
        reads.go.set()
        await asyncio.gather(*tasks)

    asyncio.run(story())


def test_demand_overtakes_prefetch_that_waits() -> None:
    async def story() -> None:
        reads = Reads(1)
        tasks = [reads.start("running"), reads.start("prefetch", prefetch=True), reads.start("one"), reads.start("two")]
        await settle()
        reads.go.set()
        await asyncio.gather(*tasks)
        assert reads.order == ["running", "one", "two", "prefetch"]

    asyncio.run(story())


def test_prefetch_under_way_takes_no_lane_from_demand_and_hears_of_it() -> None:
    async def story() -> None:
        reads = Reads(2)
        tasks = [reads.start(f"prefetch{n}", prefetch=True) for n in range(4)]
        await settle()
        assert reads.order == ["prefetch0"]
        assert reads.lanes.idle.is_set()
        tasks += [reads.start(f"demand{n}") for n in range(2)]
        await settle()
        assert reads.order == ["prefetch0", "demand0", "demand1"]
        assert not reads.lanes.idle.is_set()
        reads.go.set()
        await asyncio.gather(*tasks)
        assert reads.lanes.idle.is_set()
        assert len(reads.order) == 6

    asyncio.run(story())


def test_files_take_turns_with_their_next_ranges() -> None:
    async def story() -> None:
        reads = Reads(1)
        tasks = [reads.start("running")]
        await settle()
        tasks += [reads.start(f"{file}{turn}", turn=turn) for file in "ab" for turn in range(3)]
        await settle()
        reads.go.set()
        await asyncio.gather(*tasks)
        assert reads.order == ["running", "a0", "b0", "a1", "b1", "a2", "b2"]

    asyncio.run(story())


def test_what_comes_late_goes_with_the_turn_that_is_being_served() -> None:
    async def story() -> None:
        reads = Reads(1)
        tasks = [reads.start("a5", turn=5)]
        await settle()
        tasks += [reads.start("a6", turn=1), reads.start("late", turn=0)]
        await settle()
        reads.go.set()
        await asyncio.gather(*tasks)
        assert reads.order == ["a5", "late", "a6"]

    asyncio.run(story())


def test_what_becomes_wanted_while_it_waits_is_demand() -> None:
    async def story() -> None:
        reads, wanted = Reads(1), list[bool]()
        tasks = [reads.start("running")]
        await settle()

        async def joined() -> None:
            async with reads.lanes.take("o", lambda: not wanted, turn=0):
                reads.order.append("joined")

        tasks += [asyncio.create_task(joined()), reads.start("prefetch", prefetch=True)]
        await settle()
        wanted.append(True)
        tasks.append(reads.start("other", turn=1))
        reads.go.set()
        await asyncio.gather(*tasks)
        assert reads.order == ["running", "joined", "other", "prefetch"]

    asyncio.run(story())


def test_who_is_cancelled_while_waiting_takes_no_lane_along() -> None:
    async def story() -> None:
        reads = Reads(1)
        first, second, third = reads.start("1"), reads.start("2"), reads.start("3")
        await settle()
        second.cancel()
        await settle()
        reads.go.set()
        await asyncio.gather(first, third)
        assert reads.order == ["1", "3"]
        assert second.cancelled()

    asyncio.run(story())


def test_who_is_cancelled_at_the_moment_of_its_turn_passes_it_on() -> None:
    async def story() -> None:
        lanes = Lanes(1, lambda _: 1)
        release = asyncio.Event()

        async def hold() -> None:
            async with lanes.take("o", lambda: False):
                await release.wait()

        holder = asyncio.create_task(hold())
        await settle()
        waiter = asyncio.create_task(hold())
        await settle()
        release.set()
        await holder  # the turn is the waiter's now, and it has not run yet
        waiter.cancel()
        await asyncio.gather(waiter, return_exceptions=True)
        async with asyncio.timeout(5), lanes.take("o", lambda: False):
            pass

    asyncio.run(story())


def test_who_is_cancelled_and_does_not_know_it_yet_is_given_no_lane() -> None:
    async def story() -> None:
        reads = Reads(1)
        tasks = [reads.start("running"), reads.start("cancelled"), reads.start("next")]
        await settle()
        reads.go.set()
        tasks[1].cancel()
        reads.lanes._grant()  # as when a lane comes free in the same moment
        await asyncio.gather(*tasks, return_exceptions=True)
        assert reads.order == ["running", "next"]
        assert reads.lanes.idle.is_set()
        async with asyncio.timeout(5), reads.lanes.take("o", lambda: False):
            pass

    asyncio.run(story())


def test_a_read_that_was_granted_as_demand_never_stands_aside() -> None:
    async def story() -> None:
        reads, left = Reads(2), list[bool]()
        async with reads.lanes.take("o", lambda: bool(left)) as stands_aside:
            left.append(True)  # whoever waited for it is gone
            assert not stands_aside
            async with reads.lanes.take("o", lambda: False) as other:
                assert not other
        async with reads.lanes.take("o", lambda: True) as stands_aside:
            assert stands_aside

    asyncio.run(story())


class Moments:
    """A climb that writes down what it is told, and then wants `limit` connections."""

    def __init__(self, limit: int, *then: int) -> None:
        self.limit, self.then, self.rates = limit, list(then), list[float]()

    def moment(self, rate: float, now: float, *, is_busy: bool) -> None:
        self.rates.append(rate)
        if self.then:
            self.limit = self.then.pop(0)


def test_what_a_number_of_connections_brings_is_measured_with_that_number_only() -> None:
    async def story() -> None:
        reads = Reads(8)
        first = [reads.start(f"first{n}") for n in range(8)]
        rest = [reads.start(f"rest{n}") for n in range(20)]
        await settle()
        climb = Moments(8, 4)
        reads.lanes._lane("o").climb = climb  # type: ignore[assignment]

        def look() -> int:
            reads.lanes.came("o", 1_000)
            reads.lanes._look()
            return len(climb.rates)

        assert [look(), look()] == [0, 1]
        assert [look() for _ in range(5)] == [1] * 5  # eight are still at it, and four are wanted
        for task in first[:4]:
            task.cancel()
        await settle()
        assert len(reads.order) == 8
        assert [look(), look(), look()] == [1, 2, 3]
        for task in (*first, *rest):
            task.cancel()
        await asyncio.gather(*first, *rest, return_exceptions=True)

    asyncio.run(story())


def test_an_origin_that_answers_slowly_is_measured_over_longer_moments() -> None:
    async def story() -> None:
        reads = Reads(2)
        tasks = [reads.start(str(n)) for n in range(5)]
        await settle()
        climb = Moments(2)
        reads.lanes._lane("o").climb = climb  # type: ignore[assignment]
        for count in (1_000, 0, 0, 500, 0, 500):
            reads.lanes.came("o", count)
            reads.lanes._look()
        assert len(climb.rates) == 2
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(story())
