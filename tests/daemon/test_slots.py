"""Ranged reads under way are bounded, and demand goes before prefetch."""

from __future__ import annotations

import asyncio

from hotshelf_daemon.ingest.slots import Slots


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


class Reads:
    def __init__(self, slots: Slots) -> None:
        self.slots, self.order, self.under_way, self.most = slots, list[str](), 0, 0
        self.go = asyncio.Event()

    def start(self, name: str, *, prefetch: bool = False) -> asyncio.Task[None]:
        async def read() -> None:
            async with self.slots.take(prefetch=prefetch):
                self.order.append(name)
                self.under_way += 1
                self.most = max(self.most, self.under_way)
                await self.go.wait()
                self.under_way -= 1

        return asyncio.create_task(read())


def test_no_more_than_so_many_are_under_way() -> None:
    async def story() -> None:
        reads = Reads(Slots(3))
        tasks = [reads.start(str(n)) for n in range(10)]
        await settle()
        assert reads.under_way == 3
        reads.go.set()
        await asyncio.gather(*tasks)
        assert (reads.most, len(reads.order)) == (3, 10)

    asyncio.run(story())


def test_demand_overtakes_prefetch_that_waits() -> None:
    async def story() -> None:
        reads = Reads(Slots(1))
        tasks = [reads.start("running"), reads.start("prefetch", prefetch=True), reads.start("one"), reads.start("two")]
        await settle()
        reads.go.set()
        await asyncio.gather(*tasks)
        assert reads.order == ["running", "one", "two", "prefetch"]

    asyncio.run(story())


def test_who_is_cancelled_while_waiting_takes_no_slot_along() -> None:
    async def story() -> None:
        reads = Reads(Slots(1))
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
        slots = Slots(1)
        release = asyncio.Event()

        async def hold() -> None:
            async with slots.take(prefetch=False):
                await release.wait()

        holder = asyncio.create_task(hold())
        await settle()
        waiter = asyncio.create_task(hold())
        await settle()
        release.set()
        await holder  # the turn is the waiter's now, and it has not run yet
        waiter.cancel()
        await asyncio.gather(waiter, return_exceptions=True)
        async with asyncio.timeout(5), slots.take(prefetch=False):
            pass

    asyncio.run(story())
