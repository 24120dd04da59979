"""Keeping what is held up to date without anybody waiting: background revalidation and preloading.

An unpinned, unfrozen source is checked at its origin at most once per `revalidate_s`, after a hit on it. A changed origin
becomes a new revision, fetched as prefetch and without evicting anything for itself; then the ref flips.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine

from hotshelf_daemon.acquire.gauge import Gauge
from hotshelf_daemon.acquire.names import Want
from hotshelf_daemon.acquire.prepare import Preparer, wanted_digests
from hotshelf_daemon.index import journal, snapshots
from hotshelf_daemon.plan import Resolution
from hotshelf_daemon.shelf import Shelf
from hotshelf_shared.errors import HotshelfError

log = logging.getLogger(__name__)


class Freshness:
    def __init__(self, shelf: Shelf, preparer: Preparer, clock: Callable[[], float] = time.monotonic) -> None:
        self._shelf = shelf
        self._preparer = preparer
        self._clock = clock
        self._checked: dict[str, float] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def hit(self, want: Want) -> None:
        """Called on every hit; starts a check when one is due."""
        if want.frozen:
            return
        now = self._clock()
        if now - self._checked.get(want.key, -1e9) >= self._shelf.settings.revalidate_s:
            self._checked[want.key] = now
            self._start(self._quietly(want, self.revalidate))

    def preload(self, want: Want) -> None:
        self._start(self._quietly(want, self.fetch))

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def revalidate(self, want: Want) -> bool:
        """Whether the ref flipped to a new revision. Raises what its origin does."""
        resolution = await self._preparer.resolve(want)
        ref = self._shelf.index.read(lambda db: snapshots.ref(db, want.key))
        if ref is None:
            return False  # evicted while we asked: nothing to keep fresh, and no reason to bring it back
        if ref.listing == resolution.id:
            await self._shelf.index.write(lambda db: snapshots.mark_checked(db, want.key))
            return False
        return await self._bring(want, resolution)

    async def fetch(self, want: Want) -> bool:
        """Brings a want onto the shelf unless it is there; whether anything changed."""
        ref = self._shelf.index.read(lambda db: snapshots.ref(db, want.key))
        ready = ref is not None and self._shelf.index.read(lambda db: snapshots.is_ready(db, ref.revision))
        if ref is not None and ready and self._preparer.accepts(want, ref):
            return False
        return await self._bring(want, await self._preparer.resolve(want))

    async def _bring(self, want: Want, resolution: Resolution) -> bool:
        with self._preparer.at_work([want]):
            return await self._fetch(want, resolution)

    async def _fetch(self, want: Want, resolution: Resolution) -> bool:
        await self._shelf.index.write(
            lambda db: snapshots.open_resolution(
                db, resolution.id, source=resolution.source, size=resolution.size, files=len(resolution.files)
            )
        )
        await self._shelf.index.write(lambda db: snapshots.want(db, resolution.id, wanted_digests(resolution)))
        promised: list[str] = []
        try:
            promised = await self._preparer.reserve([resolution], evict=False)
            ref = await self._preparer.prepare(want, resolution, Gauge(str(want.source)), prefetch=True)
        except BaseException as error:
            why = error.code if isinstance(error, HotshelfError) else type(error).__name__
            if self._preparer.is_alone(resolution):
                await self._shelf.index.write(lambda db: snapshots.fail_resolution(db, resolution.id, why))
            raise
        finally:
            await self._preparer.unclaim(promised)
        await self._shelf.index.write(lambda db: journal.event(db, "flipped", str(want.source), str(ref.revision)))
        log.info("new revision", extra={"source": str(want.source), "revision": ref.revision})
        return True

    async def _quietly(self, want: Want, work: Callable[[Want], Awaitable[bool]]) -> None:
        try:
            await work(want)
        except HotshelfError as error:
            # Nobody waits for this: what is held is served on, and the next hit after revalidate_s tries again.
            log.warning("background fetch failed", extra={"source": str(want.source), "code": error.code, "why": error.message})
            detail = f"{error.code}: {error.message}"
            await self._shelf.index.write(lambda db: journal.event(db, "background_failed", str(want.source), detail))
