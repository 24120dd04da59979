"""One content onto the shelf: reserved → fetched in segments → verified → committed; resumed where a crash left it.

Single flight per content, however many resolutions want it. A failure leaves nothing visible: either the ingest waits in
`ingest/` with its journal to be resumed, or it is gone.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from hotshelf_daemon import plan
from hotshelf_daemon.flights import Flights, first_failure
from hotshelf_daemon.index import blobs, ingests
from hotshelf_daemon.index.ingests import IngestRow, SegmentRow
from hotshelf_daemon.ingest import segment
from hotshelf_daemon.ingest.commit import Committer, Verified
from hotshelf_daemon.ingest.frontier import Frontier
from hotshelf_daemon.ingest.receiving import Receiver
from hotshelf_daemon.ingest.segment import Job, Meter
from hotshelf_daemon.ingest.slots import Slots
from hotshelf_daemon.origin import Changed, Corrupted, Origin
from hotshelf_daemon.plan import Missing
from hotshelf_daemon.policy import reason_by_bytes
from hotshelf_daemon.shelf import Shelf
from hotshelf_daemon.states import IngestEvent, IngestState
from hotshelf_daemon.store import blobs as files
from hotshelf_daemon.store import durable
from hotshelf_shared.digest import Digest
from hotshelf_shared.errors import IntegrityError

T = TypeVar("T")
FILES_AT_ONCE = 64
#: Threads per slot: one that was given up while its origin is silent holds no slot, and must not hold up the next either.
SPARE_THREADS = 4


@dataclass(frozen=True, slots=True)
class Brought:
    """What a fetched object is. `unsafe` says why it executes; only with leave to are its bytes `kept` all the same."""

    digest: Digest
    size: int
    unsafe: str | None = None
    kept: bool = True


@dataclass(frozen=True, slots=True)
class Order:
    """A content that one resolution wants, and on whose terms."""

    missing: Missing
    origin: Origin
    resolution: str
    allow_pickle: bool
    prefetch: bool = False


@dataclass(slots=True)
class _Active:
    meter: Meter
    wanted_by: set[str] = field(default_factory=set)
    ingest: str = ""
    allow_pickle: bool = False
    users: int = 0


class Ingests:
    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf
        self._fetch = shelf.settings.fetch
        self._committer = Committer(shelf)
        self.receiver = Receiver(shelf, self._committer)
        self._flights: Flights[Brought] = Flights()
        self._active: dict[tuple[str, ...], _Active] = {}
        self._meters: WeakValueDictionary[tuple[str, ...], Meter] = WeakValueDictionary()
        self._slots = Slots(self._fetch.connections)
        self._files = Slots(FILES_AT_ONCE)
        self._threads = ThreadPoolExecutor(SPARE_THREADS * self._fetch.connections, thread_name_prefix="fetch")

    def meter(self, item: Missing) -> Meter:
        """How far this content is: the same meter for everybody, as long as somebody looks at it."""
        meter = self._meters.get(item.key)
        if meter is None:
            meter = self._meters[item.key] = Meter(item.object.size)
        return meter

    async def drain(self) -> None:
        """Waits for commits under way; nothing new is begun by then."""
        await self._committer.drain()

    def active(self) -> set[str]:
        """The ids of ingests that somebody is carrying out."""
        return {active.ingest for active in self._active.values() if active.ingest} | self.receiver.active

    async def bring(self, order: Order) -> Brought:
        """The content on the shelf, by this call or by one already under way.

        Raises IntegrityError (bytes are not what was promised), Changed, OriginUnavailable, InsufficientSpace.
        """
        key = order.missing.key
        while True:
            active = self._active.setdefault(key, _Active(self.meter(order.missing)))
            active.users += 1
            active.wanted_by.add(order.resolution)
            active.allow_pickle = active.allow_pickle or order.allow_pickle
            try:
                brought = await self._flights.join(key, lambda: self._bring(order, active))  # noqa: B023
            except BaseException:
                active.wanted_by.discard(order.resolution)
                raise
            finally:
                active.users -= 1
                if not active.users:
                    del self._active[key]
            if brought.kept or not order.allow_pickle:
                return brought  # else it was thrown away before our leave to keep it had arrived: once more

    async def _bring(self, order: Order, active: _Active) -> Brought:
        async with self._files.take(prefetch=order.prefetch):
            self._shelf.metrics.ingest_active.inc()
            try:
                try:
                    return await self._attempt(order, active)
                except IntegrityError as error:
                    promised = order.missing.digest is not None or isinstance(error, Corrupted)
                    if isinstance(error, Changed) or not promised:
                        raise
                    # Wrong bytes against a digest or checksum: a proxy's hiccup is cured by asking once more.
                    self._shelf.metrics.verify_failures.labels("digest").inc()
                    return await self._attempt(order, active)
            finally:
                self._shelf.metrics.ingest_active.dec()

    async def _attempt(self, order: Order, active: _Active) -> Brought:
        item = order.missing

        def begin(db: Any) -> IngestRow:
            row = _begin(db, item)
            active.ingest = row.id  # before anybody can see the row, and take it for abandoned
            return row

        row = await self._shelf.index.write(begin)
        try:
            fd, digest, unsafe = await self._download(order, active, row)
        except BaseException as error:
            await asyncio.shield(asyncio.create_task(self._interrupt(row, drop=isinstance(error, IntegrityError))))
            raise
        if item.digest is not None and digest != item.digest:
            os.close(fd)
            await self._reject(row)
            raise IntegrityError(
                f"{item.object.key} has the digest {digest}, its manifest promises {item.digest}",
                key=item.object.key,
                promised=item.digest,
                found=digest,
            )
        if unsafe and not active.allow_pickle:
            os.close(fd)
            await self._reject(row, blobs.Learnt(row.origin, row.key, row.version, row.size, digest, unsafe))
            return Brought(digest, row.size, unsafe, kept=False)
        await self._seal(row, fd)
        await self._committer.commit(Verified(row, digest, unsafe, active.wanted_by))
        return Brought(digest, row.size, unsafe)

    async def _download(self, order: Order, active: _Active, row: IngestRow) -> tuple[int, Digest, str | None]:
        """All bytes in the ingest's file: its descriptor, what they are, and why they would execute."""
        active.meter.parts.clear()
        active.meter.kept = 0
        resume = row.size > self._fetch.segment_bytes
        fd, resumed = await asyncio.to_thread(files.open_ingest, self._shelf.layout, row.id, row.size, resume=resume)
        job = self._job(order, row, fd, active.meter)
        try:
            done = await self._trusted(job, row) if resumed else []
            await self._fetch_all(job, row, done, prefetch=order.prefetch)
            digest = await self._in_thread(job, job.frontier.digest)
            unsafe = await self._in_thread(job, lambda: reason_by_bytes(fd, row.size))
            await self._shelf.index.write(lambda db: ingests.advance(db, row.id, IngestEvent.VERIFY))
        except BaseException:
            os.close(fd)
            raise
        return fd, digest, unsafe

    def _job(self, order: Order, row: IngestRow, fd: int, meter: Meter) -> Job:
        return Job(
            order.origin,
            order.missing.object,
            fd,
            Frontier(fd, row.size),
            meter,
            self._fetch.attempts,
            floor_rate=self._fetch.floor_rate,
            floor_window_s=self._fetch.idle_timeout_s,
            loose=not order.missing.object.version and row.expected is None,
        )

    async def _seal(self, row: IngestRow, fd: int) -> None:
        def seal() -> None:
            with durable.disk_errors("syncing a download"):
                durable.seal(fd)

        try:
            await asyncio.shield(asyncio.create_task(asyncio.to_thread(seal)))
        except Exception:
            await self._interrupt(row, drop=True)  # after a failed sync nothing in the file can be trusted
            raise

    async def _fetch_all(self, job: Job, row: IngestRow, done: list[SegmentRow], *, prefetch: bool) -> None:
        # Without an ETag or a promised digest nothing ties two ranges to one version: one stream.
        loose = job.loose
        ranges = plan.segments(
            row.size, row.size or 1 if loose else self._fetch.segment_bytes, [(s.start, s.stop) for s in done]
        )
        journalled = row.size > self._fetch.segment_bytes and not loose

        async def one(start: int, stop: int) -> None:
            async with self._slots.take(prefetch=prefetch):
                crc = await self._in_thread(job, lambda: segment.fetch(job, start, stop), wait=False)
            if journalled:
                await self._shelf.index.write(lambda db: ingests.journal(db, row.id, SegmentRow(start, stop, crc)))

        try:
            async with asyncio.TaskGroup() as group:
                for start, stop in ranges:
                    group.create_task(one(start, stop))
        except BaseExceptionGroup as failures:
            raise first_failure(failures) from failures

    async def _trusted(self, job: Job, row: IngestRow) -> list[SegmentRow]:
        """The journalled segments that the file really holds: a power cut can take bytes that the journal has."""
        rows = self._shelf.index.read(lambda db: ingests.journalled(db, row.id))

        def check() -> list[SegmentRow]:
            kept = []
            for found in rows:
                if not job.stop.is_set() and segment.checksum(job.fd, found.start, found.stop) == found.crc:
                    job.frontier.arrived(found.start, found.stop)
                    kept.append(found)
            return kept

        kept = await self._in_thread(job, check)
        job.meter.kept = sum(found.stop - found.start for found in kept)
        return kept

    async def _interrupt(self, row: IngestRow, *, drop: bool) -> None:
        """Stopped half-way: what arrived waits to be resumed, unless it cannot be trusted."""
        if drop:
            await asyncio.to_thread(files.drop_ingest, self._shelf.layout, row.id)
        await self._shelf.index.write(lambda db: _interrupt(db, row.id, drop=drop))

    async def _reject(self, row: IngestRow, fact: blobs.Learnt | None = None) -> None:
        await asyncio.to_thread(files.drop_ingest, self._shelf.layout, row.id)

        def change(db: Any) -> None:
            ingests.advance(db, row.id, IngestEvent.REJECT)
            ingests.close(db, [row.id])
            if fact is not None:
                blobs.learn(db, [fact])

        await self._shelf.index.write(change)

    async def _in_thread(self, job: Job, work: Callable[[], T], *, wait: bool = True) -> T:
        """On a fetch thread; when cancelled, waits until it is done with the file, or at least done for good with writing."""
        future = asyncio.get_running_loop().run_in_executor(self._threads, work)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            future.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # seen: it concerns nobody
            await asyncio.shield(asyncio.get_running_loop().run_in_executor(None, job.halt))
            if wait:
                await asyncio.wait([future])
            raise


def _begin(db: Any, item: Missing) -> IngestRow:
    """The reserved row of this object, from now on fetching."""
    row = ingests.find(db, item.origin, item.object, item.digest)
    if row is None:
        row = ingests.new_row(item.origin, item.object, item.digest)
        ingests.reserve(db, [row])
    elif row.state is not IngestState.RESERVED:
        # Whoever was at it was cancelled between two steps; single flight says that nobody is at it now.
        ingests.advance(db, row.id, IngestEvent.INTERRUPT)
    ingests.advance(db, row.id, IngestEvent.FETCH)
    return row


def _interrupt(db: Any, id_: str, *, drop: bool) -> None:
    ingests.advance(db, id_, IngestEvent.INTERRUPT)
    if drop:
        ingests.forget_journal(db, id_)
