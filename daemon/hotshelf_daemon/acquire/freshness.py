"""Keeping what is held up to date without anybody waiting: background revalidation and preloading.

An unpinned source that is neither frozen nor rolled back is checked at its origin every `revalidate_s` for as long as it is
acquired now and then, so that whoever comes that long after a change finds it here. A changed origin becomes a new revision,
fetched as prefetch and without evicting anything for itself; then the ref flips.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from hotshelf_daemon.acquire.bringing import bring
from hotshelf_daemon.acquire.gauge import Gauge
from hotshelf_daemon.acquire.names import Want
from hotshelf_daemon.acquire.prepare import Preparer
from hotshelf_daemon.index import journal, rollbacks, snapshots
from hotshelf_daemon.plan import Resolution
from hotshelf_daemon.shelf import Shelf
from hotshelf_shared.errors import HotshelfError

log = logging.getLogger(__name__)
#: What nobody has acquired for so long, in seconds, is not looked at again before somebody does.
IN_USE_S = 3_600.0
#: Between two attempts to preload what cannot be had, at the most, seconds.
LONGEST_PAUSE_S = 900.0


class Freshness:
    def __init__(self, shelf: Shelf, preparer: Preparer, clock: Callable[[], float] = time.monotonic) -> None:
        self._shelf = shelf
        self._preparer = preparer
        self._clock = clock
        self._used: dict[str, float] = {}
        self._next: dict[str, asyncio.TimerHandle] = {}
        self._looking: set[str] = set()
        #: Wants whose last look failed, and of what.
        self._failing: dict[str, str] = {}
        self._tasks: set[asyncio.Task[Any]] = set()

    def hit(self, want: Want) -> None:
        """Called on every hit; looks at once unless its origin was asked within `revalidate_s`."""
        if not want.frozen:
            self._use(want, self._clock())
            if want.key not in self._next:
                self._look(want)

    def fetched(self, want: Want) -> None:
        """Called when a miss has just asked its origin."""
        if not want.frozen:
            self._use(want, self._clock())
            self._look_later(want)

    def preload(self, want: Want) -> None:
        """What is to be here before anybody asks is kept up to date for good."""
        self._start(self._preload(want))
        if not want.frozen:
            self._use(want, math.inf)
            self._look_later(want)

    async def _preload(self, want: Want) -> None:
        """Until it is here: its origin may be away when the daemon starts, or not have it yet."""
        pause_s = self._shelf.settings.revalidate_s
        while not await self._quietly(want, self.fetch):
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, max(LONGEST_PAUSE_S, pause_s))

    def _use(self, want: Want, now: float) -> None:
        self._used[want.key] = max(now, self._used.get(want.key, now))

    def _look(self, want: Want) -> None:
        if want.key not in self._looking:
            self._looking.add(want.key)
            self._start(self._quietly(want, self.revalidate))
        self._look_later(want)

    def _look_later(self, want: Want) -> None:
        if want.key in self._next:
            self._next[want.key].cancel()
        loop = asyncio.get_running_loop()
        self._next[want.key] = loop.call_later(self._shelf.settings.revalidate_s, self._look_again, want)

    def _look_again(self, want: Want) -> None:
        del self._next[want.key]
        if self._clock() - self._used[want.key] < IN_USE_S:
            self._look(want)
        else:
            del self._used[want.key]

    def _start(self, work: Coroutine[None, None, Any]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def stop(self) -> None:
        for timer in self._next.values():
            timer.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def revalidate(self, want: Want) -> bool:
        """Whether the ref flipped to a new revision. Raises what its origin does."""
        read, key = self._shelf.index.read, want.key
        if read(lambda db: snapshots.ref(db, key) is None or rollbacks.moment(db, str(want.source)) is not None):
            return False  # evicted, and no reason to bring it back; or to stay as it is
        resolution = await self._preparer.resolve(want)
        ref = read(lambda db: snapshots.ref(db, key))
        if ref is None:
            return False
        is_whole = read(lambda db: snapshots.is_ready(db, ref.revision)) and self._preparer.accepts(want, ref)
        if ref.listing == resolution.id and is_whole:
            await self._shelf.index.write(lambda db: snapshots.mark_checked(db, key, resolution.release))
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
        before = self._shelf.index.read(lambda db: snapshots.ref(db, want.key))
        (ref,) = await bring(self._shelf, self._preparer, [(want, resolution)], Gauge(str(want.source)), prefetch=True)
        if before is not None and before.revision == ref.revision:
            return False  # other objects with the same bytes
        log.info("new revision", extra={"source": str(want.source), "revision": ref.revision})
        return True

    async def _quietly(self, want: Want, work: Callable[[Want], Awaitable[bool]]) -> bool:
        """Whether it went well."""
        try:
            await work(want)
        except HotshelfError as error:
            # Nobody waits for this: what is held is served on, and the next look tries again.
            log.warning("background fetch failed", extra={"source": str(want.source), "code": error.code, "why": error.message})
            if self._failing.get(want.key) != error.code:  # once: it may be so for days
                self._failing[want.key] = error.code
                detail = f"{error.code}: {error.message}"
                with contextlib.suppress(HotshelfError):  # the disk may be what failed
                    await self._shelf.index.write(lambda db: journal.event(db, "background_failed", str(want.source), detail))
            return False
        else:
            self._failing.pop(want.key, None)
            return True
        finally:
            self._looking.discard(want.key)
