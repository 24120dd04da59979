"""Rollbacks and refreshes amid fetches, on an origin in memory: the moments that no client can hit on purpose."""

from __future__ import annotations

import asyncio
import contextlib
import pathlib
import sqlite3
import threading
from contextlib import AbstractContextManager
from typing import Any

import pytest

from hotshelf_daemon.acquire import Gauge
from hotshelf_daemon.objects import OriginObject
from hotshelf_daemon.origin import Changed, MemoryOrigin
from hotshelf_shared.errors import AccessDenied, Conflict, OriginUnavailable
from hotshelf_shared.wire import Skipped
from tests import objects
from tests.daemon.test_desk import PEER, House, run
from tests.waiting import wait_until

SOURCE, KEY = "s3://b/m", "m/a.safetensors"


class Dammed(MemoryOrigin):
    """Its bodies wait, when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.reached, self.free = threading.Event(), threading.Event()
        self.free.set()

    def open(self, obj: OriginObject, start: int, stop: int) -> AbstractContextManager[Any]:
        self.reached.set()
        assert self.free.wait(20)
        return super().open(obj, start, stop)

    def dam(self) -> None:
        self.reached.clear()
        self.free.clear()


def version(house: House, number: int) -> str:
    """What the bucket has from now on; its revision."""
    data = objects.noise(("version", number), 1_000)
    house.origin.objects[KEY] = data
    return str(objects.manifest_of({"a.safetensors": data}).revision)


async def held(house: House) -> str:
    """What is served now."""
    answer = await house.acquire(SOURCE)
    await house.leasing.release(answer.id, PEER)
    return str(answer.revision)


def named(house: House, source: str) -> str:
    """What a source stands for; from any thread."""
    with contextlib.closing(sqlite3.connect(f"file:{house.index.path}?mode=ro", uri=True)) as db:
        return str(db.execute("SELECT revision FROM v_refs WHERE source = ?", (source,)).fetchone()[0])


async def two_versions(house: House) -> tuple[str, str]:
    """Held, the second of them named."""
    first = version(house, 1)
    assert await held(house) == first
    second = version(house, 2)
    assert (await house.refresh(SOURCE))["revision"] == second
    return first, second


async def under_way(house: House, work: Any) -> asyncio.Task[Any]:
    """`work` as a task that has begun to fetch, and waits."""
    assert isinstance(house.origin, Dammed)
    house.origin.dam()
    task = asyncio.create_task(work)
    await asyncio.to_thread(house.origin.reached.wait, 20)
    return task


def test_a_fetch_in_the_background_does_not_flip_what_was_rolled_back_meanwhile(tmp_path: pathlib.Path) -> None:
    async def story(house: House) -> None:
        first, _ = await two_versions(house)
        version(house, 3)
        looking = await under_way(house, house.freshness.revalidate(house.want(SOURCE)))
        await house.turning.roll_back(SOURCE, uid=0, dry_run=False)
        house.origin.free.set()
        with pytest.raises(Changed):
            await looking
        assert await held(house) == first
        assert not await house.freshness.revalidate(house.want(SOURCE))
        assert await held(house) == first

    run(tmp_path, story, origin_type=Dammed)


def test_a_rollback_is_not_undone_by_a_refresh_that_began_before_it(tmp_path: pathlib.Path) -> None:
    async def story(house: House) -> None:
        first, _ = await two_versions(house)
        third = version(house, 3)
        refreshing = await under_way(house, house.refresh(SOURCE))
        await house.turning.roll_back(SOURCE, uid=0, dry_run=False)
        house.origin.free.set()
        with pytest.raises(Conflict):
            await refreshing
        assert await held(house) == first
        assert (await house.refresh(SOURCE))["revision"] == third
        assert await held(house) == third

    run(tmp_path, story, origin_type=Dammed)


def test_a_refresh_joins_what_was_fetched_before_the_rollback_that_it_ends(tmp_path: pathlib.Path) -> None:
    async def story(house: House) -> None:
        await two_versions(house)
        third = version(house, 3)
        looking = await under_way(house, house.freshness.revalidate(house.want(SOURCE)))
        await house.turning.roll_back(SOURCE, uid=0, dry_run=False)
        refreshing = asyncio.create_task(house.refresh(SOURCE))
        house.origin.free.set()
        told = await refreshing
        assert (told["revision"], told["unfrozen"]) == (third, True)
        assert await held(house) == third
        await asyncio.gather(looking, return_exceptions=True)
        assert await held(house) == third

    run(tmp_path, story, origin_type=Dammed)


def test_a_miss_amid_a_rollback_is_answered_with_what_was_before(tmp_path: pathlib.Path) -> None:
    async def story(house: House) -> None:
        first, second = await two_versions(house)
        blob = objects.manifest_of({"a.safetensors": house.origin.objects[KEY]})["a.safetensors"].digest
        house.index.write_now(lambda db: db.execute("UPDATE snapshots SET state = 'damaged' WHERE revision = ?", (second,)))
        house.index.write_now(lambda db: db.execute("DELETE FROM blobs WHERE digest = ?", (blob,)))
        asking = await under_way(house, house.acquire(SOURCE))
        await house.turning.roll_back(SOURCE, uid=0, dry_run=False)
        house.origin.free.set()
        assert str((await asking).revision) == first

    run(tmp_path, story, origin_type=Dammed)


def test_only_an_admin_refreshes_what_an_operator_froze(tmp_path: pathlib.Path) -> None:
    async def story(house: House) -> None:
        first, second = await two_versions(house)

        async def worker() -> Any:
            return await house.refreshing.refresh(SOURCE, Gauge(SOURCE), timeout_s=20, is_admin=False)

        assert (await worker())["revision"] == second
        await house.turning.roll_back(SOURCE, uid=0, dry_run=False)
        with pytest.raises(AccessDenied):
            await worker()
        assert await held(house) == first
        with pytest.raises(AccessDenied):
            await house.refreshing.refresh("still", Gauge(SOURCE), timeout_s=20, is_admin=False)

    run(tmp_path, story, models={"still": {"source": "s3://b/still", "freeze": True}})


def test_what_was_left_out_is_told_again_after_a_rollback(tmp_path: pathlib.Path) -> None:
    async def story(house: House) -> None:
        house.origin.objects["m/evil.py"] = b"print()"
        version(house, 1)
        await held(house)
        del house.origin.objects["m/evil.py"]
        version(house, 2)
        await house.refresh(SOURCE)
        assert (await house.acquire(SOURCE)).skipped == ()
        await house.turning.roll_back(SOURCE, uid=0, dry_run=False)
        assert [one.path for one in (await house.acquire(SOURCE)).skipped if isinstance(one, Skipped)] == ["evil.py"]

    run(tmp_path, story)


def test_what_nobody_has_acquired_for_long_is_not_looked_at(tmp_path: pathlib.Path) -> None:
    now, told = [1_000.0], [0]

    def clock() -> float:
        told[0] += 1
        return now[0]

    async def story(house: House) -> None:
        def asked() -> int:
            return sum(key.startswith("m") for _, key, _, _ in house.origin.requests)

        first = version(house, 1)
        assert await held(house) == first
        before = asked()
        await asyncio.to_thread(wait_until, lambda: asked() > before)
        now[0] += 4_000
        decided = told[0]
        await asyncio.to_thread(wait_until, lambda: told[0] > decided)
        other = house.put("other", 500)
        old = (await house.acquire(other)).revision
        seen = asked()
        house.origin.objects["other/a.safetensors"] = objects.noise("other still", 500)
        await asyncio.to_thread(wait_until, lambda: named(house, other) != old)  # by now a look would have happened
        assert asked() == seen
        version(house, 2)
        assert await held(house) == first
        await asyncio.to_thread(wait_until, lambda: asked() > seen)

    run(tmp_path, story, clock=clock, revalidate_s=0.05)


def test_an_origin_that_is_off_is_asked_again_later(tmp_path: pathlib.Path) -> None:
    async def story(house: House) -> None:
        version(house, 1)
        await held(house)
        house.origin.offline = True
        before = len(house.origin.requests)
        await asyncio.to_thread(wait_until, lambda: len(house.origin.requests) > before + 2)
        with pytest.raises(OriginUnavailable):
            await house.refresh(SOURCE)
        house.origin.offline = False
        second = version(house, 2)
        await asyncio.to_thread(wait_until, lambda: named(house, SOURCE) == second)

    run(tmp_path, story, revalidate_s=0.02)
