"""The hand: what changes the disk and the index is never interleaved, whoever is cancelled meanwhile."""

from __future__ import annotations

import asyncio
import pathlib
import threading
from collections.abc import Callable
from typing import Any

import pytest

from hotshelf_daemon import collect
from hotshelf_daemon.shelf import Hand
from hotshelf_daemon.store import trees
from tests import objects
from tests.daemon.test_desk import PEER, House, run


class Gate:
    """Holds a function that runs on a thread until it is opened."""

    def __init__(self, real: Callable[..., Any]) -> None:
        self._real, self.reached, self.open = real, threading.Event(), threading.Event()

    def __call__(self, *args: Any, **named: Any) -> Any:
        self.reached.set()
        assert self.open.wait(20)
        return self._real(*args, **named)


async def cancelled(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert task.cancelled()


def test_who_is_cancelled_leaves_at_once_and_the_hand_stays_taken_until_the_work_is_done() -> None:
    async def story() -> None:
        hand, gate, order = Hand(), asyncio.Event(), list[str]()

        async def work() -> None:
            await gate.wait()
            order.append("done")

        async def holder() -> None:
            async with hand:
                await hand.finish(work())

        async def next_one() -> None:
            async with hand:
                order.append("next")

        first = asyncio.create_task(holder())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        await cancelled(first)
        second = asyncio.create_task(next_one())
        await asyncio.sleep(0)
        assert order == []
        gate.set()
        await second
        assert order == ["done", "next"]

    asyncio.run(story())


def test_work_that_fails_when_nobody_waits_any_more_lets_the_hand_go() -> None:
    async def story() -> None:
        hand, gate = Hand(), asyncio.Event()

        async def work() -> None:
            await gate.wait()
            raise OSError("the disk")

        async def holder() -> None:
            async with hand:
                await hand.finish(work())

        first = asyncio.create_task(holder())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        await cancelled(first)
        gate.set()
        async with asyncio.timeout(5), hand:
            pass

    asyncio.run(story())


def test_a_holder_that_goes_on_after_a_cancellation_keeps_the_hand() -> None:
    async def story() -> None:
        hand, gate, order = Hand(), asyncio.Event(), list[str]()

        async def holder() -> None:
            async with hand:
                try:
                    await hand.finish(gate.wait())
                except asyncio.CancelledError:
                    gate.set()
                    for _ in range(5):
                        await asyncio.sleep(0)
                    order.append("still holding")

        first = asyncio.create_task(holder())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        first.cancel()
        async with hand:
            order.append("next")
        assert order == ["still holding", "next"]

    asyncio.run(story())


def test_a_collection_waits_for_a_snapshot_that_nobody_waits_for_any_more(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(trees.lay_out)
    monkeypatch.setattr(trees, "lay_out", gate)

    async def story(house: House) -> None:
        source = house.put("m")
        leaving = asyncio.create_task(house.acquire(source))
        assert await asyncio.to_thread(gate.reached.wait, 20)
        await cancelled(leaving)
        collecting = asyncio.create_task(collect.collect(house.shelf, active=list, dry_run=False))
        done, _ = await asyncio.wait({collecting}, timeout=0.3)
        assert not done
        gate.open.set()
        await collecting
        answer = await house.acquire(source)
        assert objects.read(tmp_path / "store" / answer.path) == {"a.safetensors": objects.noise("m", 1_000)}

    run(tmp_path, story)


def test_who_acquires_what_is_being_evicted_gets_all_of_it(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(collect._remove_files)

    async def story(house: House) -> None:
        source = house.put("m")
        first = await house.acquire(source)
        await house.leasing.release(first.id, PEER)
        monkeypatch.setattr(collect, "_remove_files", gate)
        leaving = asyncio.create_task(collect.evict(house.shelf, first.revision, reason="asked"))
        assert await asyncio.to_thread(gate.reached.wait, 20)
        await cancelled(leaving)
        acquiring = asyncio.create_task(house.acquire(source))
        await asyncio.wait({acquiring}, timeout=0.3)
        gate.open.set()
        answer = await acquiring
        async with house.shelf.hand:
            assert objects.read(tmp_path / "store" / answer.path) == {"a.safetensors": objects.noise("m", 1_000)}

    run(tmp_path, story)
