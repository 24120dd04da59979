"""The use cases in this process, on an origin in memory: the moments that no client can hit on purpose."""

from __future__ import annotations

import asyncio
import pathlib
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from hotshelf_daemon.acquire import (
    Bundles,
    Desk,
    Freshness,
    Gauge,
    Leasing,
    Names,
    Peer,
    Pipelines,
    Preparer,
    Refreshing,
    Turning,
    Want,
    published_bundles,
    published_pipelines,
)
from hotshelf_daemon.config import Settings
from hotshelf_daemon.index import Index, leases
from hotshelf_daemon.ingest import Ingests
from hotshelf_daemon.metrics import Metrics
from hotshelf_daemon.origin import MemoryOrigin, Origin
from hotshelf_daemon.shelf import Shelf
from hotshelf_daemon.store import Layout
from hotshelf_shared.errors import HotshelfError, InsufficientSpace
from hotshelf_shared.source import Source
from hotshelf_shared.wire import AcquireRequest, LeaseAnswer, Wish
from tests import objects
from tests.waiting import wait_until

PEER = Peer(uid=1, gid=1, pid=1)


class OneOrigin:
    """A directory that knows one origin for everything."""

    def __init__(self, origin: Origin) -> None:
        self._origin = origin

    def origin_of(self, _source: Source) -> Origin:
        return self._origin


class House:
    """Everything below the edges, on a store of its own."""

    def __init__(
        self,
        folder: pathlib.Path,
        index_type: type[Index] = Index,
        origin_type: type[MemoryOrigin] = MemoryOrigin,
        clock: Callable[[], float] = time.monotonic,
        **settings: Any,
    ) -> None:
        self.settings = Settings.model_validate({"store": str(folder / "store"), **settings})
        self.layout = Layout(self.settings.store)
        (folder / "index").mkdir()
        self.index = index_type(str(folder / "index" / "index.db"))
        self.shelf = Shelf(self.settings, self.layout, self.index, Metrics("test"), b"key")
        self.origin = origin_type()
        self.ingests = Ingests(self.shelf)
        directory: Any = OneOrigin(self.origin)
        pipelines = Pipelines(self.shelf, published_pipelines(self.shelf, directory))
        bundles = Bundles(self.shelf, published_bundles(self.shelf, directory))
        self.preparer = Preparer(self.shelf, directory, self.ingests, pipelines=pipelines, bundles=bundles)
        self.leasing = Leasing(self.shelf)
        self.names = names = Names(self.settings)
        self.freshness = Freshness(self.shelf, self.preparer, clock)
        self.refreshing, self.turning = Refreshing(self.shelf, names, self.preparer), Turning(self.shelf, names)
        self.desk = Desk(self.shelf, names, self.preparer, self.freshness, self.leasing, pipelines=pipelines, bundles=bundles)

    def want(self, source: str) -> Want:
        return self.names.want(Wish(Source.parse(source)))

    async def refresh(self, source: str) -> dict[str, Any]:
        return await self.refreshing.refresh(source, Gauge(source), timeout_s=20, is_admin=True)

    async def acquire(self, source: str, *, timeout_s: float = 60.0) -> LeaseAnswer:
        order = AcquireRequest((Wish(Source.parse(source)),), timeout_s=timeout_s)
        (answer,) = await self.desk.acquire(order, PEER, Gauge(source))
        return answer

    def put(self, name: str, size: int = 1_000) -> str:
        self.origin.objects[f"{name}/a.safetensors"] = objects.noise(name, size)
        return f"s3://b/{name}"

    def leases(self) -> int:
        return len(self.index.read(leases.everything))

    def close(self) -> None:
        self.index.close()
        self.layout.close()


def run(folder: pathlib.Path, story: Callable[[House], Coroutine[Any, Any, None]], **settings: Any) -> None:
    async def within() -> None:
        house = House(folder, **settings)
        try:
            async with asyncio.timeout(30):
                await story(house)
        finally:
            await house.freshness.stop()
            house.close()

    asyncio.run(within())


class SlowIndex(Index):
    """Its writer dawdles after a commit, when told to, before anybody hears of it."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.dawdle, self.committed, self.go = False, threading.Event(), threading.Event()

    def _transact(self, change: Any, durable: bool) -> Any:
        result = super()._transact(change, durable)
        if self.dawdle:
            self.dawdle = False
            self.committed.set()
            self.go.wait(20)
        return result

    async def write_brief(self, change: Any) -> Any:
        return await self.write(change)  # as when another write is under way


@pytest.mark.parametrize("held", [True, False])
def test_who_leaves_while_its_lease_is_written_leaves_none(tmp_path: pathlib.Path, held: bool) -> None:
    async def story(house: House) -> None:
        source, index = house.put("m"), house.index
        assert isinstance(index, SlowIndex)
        if held:
            await house.leasing.release((await house.acquire(source)).id, PEER)
        index.dawdle = True
        asking = asyncio.create_task(house.acquire(source))
        await asyncio.to_thread(index.committed.wait, 20)
        assert house.leases() == 1
        asking.cancel()
        index.go.set()
        await asyncio.gather(asking, return_exceptions=True)
        assert (house.leases(), len(house.leasing)) == (0, 0)
        assert index.read(lambda db: db.execute("SELECT count(*) FROM wanted_blobs").fetchone()[0]) == 0

    run(tmp_path, story, index_type=SlowIndex)


@pytest.mark.parametrize("steps", range(0, 60, 4))
def test_who_leaves_at_any_moment_leaves_no_lease_and_no_claim(tmp_path: pathlib.Path, steps: int) -> None:
    """Cancelled after so many turns of the event loop, wherever the acquire is by then."""

    async def story(house: House) -> None:
        asking = asyncio.create_task(house.acquire(house.put("m")))
        for _ in range(steps):
            await asyncio.sleep(0.0005)
        asking.cancel()
        (result,) = await asyncio.gather(asking, return_exceptions=True)
        if isinstance(result, LeaseAnswer):
            await house.leasing.release(result.id, PEER)
        await asyncio.to_thread(wait_until, lambda: not house.preparer.busy(), timeout_s=10)
        assert (house.leases(), len(house.leasing)) == (0, 0)
        assert house.index.read(lambda db: db.execute("SELECT count(*) FROM wanted_blobs").fetchone()[0]) == 0
        assert (await house.acquire("s3://b/m")).revision

    run(tmp_path, story)


def test_what_is_reserved_for_one_is_no_room_for_another(tmp_path: pathlib.Path) -> None:
    async def story(house: House) -> None:
        sources = [house.put(name, 600) for name in ("one", "two", "three")]
        asked = [house.acquire(source, timeout_s=2) for source in sources]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert all(isinstance(answer, LeaseAnswer | InsufficientSpace) for answer in answers), answers
        assert sum(isinstance(answer, LeaseAnswer) for answer in answers) == 1
        held = sum(house.shelf.held_bytes().values())
        assert held <= 1_000

    for number in range(5):
        folder = tmp_path / str(number)
        folder.mkdir()
        run(folder, story, budget=1_000)


def test_a_name_nobody_configured_says_so(tmp_path: pathlib.Path) -> None:
    async def story(house: House) -> None:
        with pytest.raises(HotshelfError, match="'sdxl2'") as refused:
            await house.acquire("sdxl2")
        assert "'sdxl'" in refused.value.hint

    run(tmp_path, story, models={"sdxl": {"source": "s3://b/m"}})
