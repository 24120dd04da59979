"""One object's bytes into one file: opened or resumed, fetched in ranges, hashed and looked at; committing is up to others."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from hotshelf_daemon.flights import first_failure
from hotshelf_daemon.index import ingests
from hotshelf_daemon.index.ingests import IngestRow, SegmentRow
from hotshelf_daemon.ingest import segment
from hotshelf_daemon.ingest.errands import Errands
from hotshelf_daemon.ingest.frontier import Frontier
from hotshelf_daemon.ingest.lanes import Lanes
from hotshelf_daemon.ingest.pacing import Pace, Rate
from hotshelf_daemon.ingest.segment import Job, Meter, Run
from hotshelf_daemon.ingest.threads import begun, through, told
from hotshelf_daemon.ingest.traffic import Shared
from hotshelf_daemon.objects import Checksum, OriginObject
from hotshelf_daemon.origin import Corrupted, Origin
from hotshelf_daemon.plan import Cut
from hotshelf_daemon.policy import reason_by_bytes
from hotshelf_daemon.shelf import Shelf
from hotshelf_daemon.store import blobs as files
from hotshelf_daemon.store import durable
from hotshelf_shared.digest import Digest

log = logging.getLogger(__name__)
T = TypeVar("T")
#: Threads per connection: one that was given up while its origin is silent holds no lane, and must not hold up the next either.
SPARE_THREADS = 4
#: Up to this size a file is brought by one thread in one go.
SMALL_BYTES = 1 << 20
#: How many requests a run of the tail may be overtaken by.
SPARE_REQUESTS = 2
#: Each keeps a buffer of some megabytes for good, and reads more than any origin sends.
HASHING_THREADS = 8
#: Who answers workers goes first, then who hashes: what lags behind leaves the cache, and is dear to read again.
HASH_NICE, FETCH_NICE = 5, 10
#: Threads that ask for checksums, and how long a file that is complete waits for an answer, seconds: one can do without.
ASKING_THREADS = 4
TOLD_WITHIN_S = 1.0
#: How often the tail is looked at, seconds.
LOOK_S = 0.25


@dataclass(frozen=True, slots=True)
class Downloaded:
    """An open file that holds all bytes, or one that is sealed; what they are, and why they would execute."""

    fd: int
    digest: Digest
    unsafe: str | None

    @property
    def is_sealed(self) -> bool:
        return self.fd < 0

    def close(self) -> None:
        if not self.is_sealed:
            os.close(self.fd)


@dataclass(frozen=True, slots=True)
class Task:
    """What is to be brought. `is_prefetch` is asked again and again: somebody may begin to wait for it."""

    origin: Origin
    object: OriginObject
    row: IngestRow
    meter: Meter
    is_prefetch: Callable[[], bool]
    #: Whether its pages stay in the page cache.
    keep: bool = True

    @property
    def checksum(self) -> Checksum | None:
        """What the origin has said of the bytes, where no manifest says it better."""
        return self.object.checksum if self.row.expected is None else None


class Downloads:
    def __init__(self, shelf: Shelf) -> None:
        settings = shelf.settings
        self._shelf, self._fetch = shelf, settings.fetch
        self._lanes = Lanes(self._fetch.connections, settings.connections_of)
        self._rate = Rate(settings.prefetch.max_rate)
        self._threads = ThreadPoolExecutor(SPARE_THREADS * self._fetch.connections, "fetch", durable.be_modest, (FETCH_NICE,))
        self._hashing_threads = min(HASHING_THREADS, os.cpu_count() or 1)
        self._hashing = begun("hash", self._hashing_threads, HASH_NICE)
        self._in_ranges = 0
        self._errands = Errands(self._lanes, self._threads)
        self._asking = ThreadPoolExecutor(ASKING_THREADS, "ask")

    def is_small(self, size: int) -> bool:
        """Whether it is brought in one go: it is never resumed."""
        return size <= min(SMALL_BYTES, self._fetch.segment_bytes)

    async def download(self, task: Task) -> Downloaded:
        """Raises what the origin's port does, and InsufficientSpace; then the file is closed and keeps what it has."""
        task.meter.parts.clear()
        task.meter.kept = 0
        if self.is_small(task.row.size):
            return await self._in_one_go(task)
        fd, resumed = await self._opened(task.row)
        job, began = self._job(task, fd), time.monotonic()
        asked = self._ask(task)
        try:
            done = await self._trusted(job, task.row) if resumed else []
            await self._fetch_all(job, task, done)
            kept_there = task.checksum or await told(asked, TOLD_WITHIN_S)
            judged = await self._in_thread(job, lambda: self._judged(job, task.row, kept_there))
        except BaseException:
            if asked is not None:
                asked.cancel()
            await through(job.halt)  # threads may still be at it
            os.close(fd)
            raise
        took = {"seconds": round(job.last_at - began, 3), "verdict_ms": round(1e3 * (time.monotonic() - job.last_at), 1)}
        log.info("fetched", extra={"origin": task.origin.label, "key": task.object.key, "bytes": task.row.size, **took})
        return judged

    async def _opened(self, row: IngestRow) -> tuple[int, bool]:
        """The ingest's file, and whether it holds what was fetched before."""
        opening = partial(files.open_ingest, self._shelf.layout, row.id, row.size, resume=row.size > self._fetch.segment_bytes)
        work = asyncio.get_running_loop().run_in_executor(None, opening)
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            await asyncio.wait([work])
            if work.exception() is None:
                os.close(work.result()[0])
            raise

    async def _in_one_go(self, task: Task) -> Downloaded:
        """All of it by one thread: of a small file the steps are what costs."""
        job = self._job(task, -1)

        def bring(stands_aside: bool) -> Downloaded:
            with job.touching():
                job.fd, _ = files.open_ingest(self._shelf.layout, task.row.id, task.row.size, resume=False)
                job.frontier = Frontier(job.fd, task.row.size, keep=task.keep, kept=task.checksum)
            if task.row.size:
                segment.carry(job, Run.of(0, task.row.size, stands_aside=stands_aside), 0)
            with job.touching():
                done = self._judged(job, task.row, task.checksum)
                if done.unsafe or done.digest != (task.row.expected or done.digest):
                    return done
                job.fd = -1
                _seal(done.fd, keep=task.keep)
                return replace(done, fd=-1)

        try:
            return await self._errands.run(task.origin.label, task.is_prefetch, bring)
        except BaseException:
            await through(job.halt)
            if job.fd >= 0:
                os.close(job.fd)
            raise

    def _judged(self, job: Job, row: IngestRow, kept: Checksum | None) -> Downloaded:
        with durable.disk_errors("reading a download"):
            digest = job.frontier.digest()
            if kept is not None and kept != job.frontier.checksum(kept.algorithm):
                what = f"the {kept.algorithm} that {job.origin.label} keeps of them"
                raise Corrupted(f"the bytes of {job.object.key} do not match {what}")
            return Downloaded(job.fd, digest, reason_by_bytes(job.fd, row.size))

    async def seal(self, done: Downloaded, *, keep: bool) -> None:
        """Read-only, on the disk, closed; closed also when it fails. Out of the page cache unless it is to `keep` it."""
        await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._threads, partial(_seal, done.fd, keep=keep)))

    def _job(self, task: Task, fd: int) -> Job:
        loose = not task.object.version and task.row.expected is None
        return Job(
            task.origin,
            task.object,
            fd,
            Frontier(
                fd,
                task.row.size,
                keep=task.keep,
                aside=None if loose else self._hashing.submit,
                # Where there are as many files as processors, each is hashed while it is warm, and none holds up another.
                inline=lambda: loose or self._in_ranges >= self._hashing_threads,
                kept=task.checksum,
            ),
            task.meter,
            self._fetch.attempts,
            traffic=Shared(self._lanes, self._rate, task.origin.label, task.is_prefetch),
            floor_rate=self._fetch.floor_rate,
            floor_window_s=self._fetch.idle_timeout_s,
            loose=loose,
        )

    async def _fetch_all(self, job: Job, task: Task, done: list[SegmentRow]) -> None:
        # Without an ETag or a promised digest nothing ties two ranges to one version: one stream.
        row, label = task.row, task.origin.label
        cut = Cut(row.size, row.size if job.loose else self._fetch.segment_bytes, [(one.start, one.stop) for one in done])
        journalled = row.size > self._fetch.segment_bytes and not job.loose

        async def one_after_another() -> None:
            while cut.left:
                async with self._lanes.take(label, task.is_prefetch, turn=cut.taken) as stands_aside:
                    span = cut.next(1 if job.loose else self._lanes.limit(label))
                    if span is None:
                        return
                    crc = await self._carried(job, Run.of(*span, stands_aside=stands_aside), lambda: not cut.left)
                if journalled:
                    await self._shelf.index.write_brief(lambda db: ingests.journal(db, row.id, SegmentRow(*span, crc)))  # noqa: B023

        self._in_ranges += 1
        try:
            async with asyncio.TaskGroup() as group:
                # One more than can be at it: only while somebody waits is it known that all connections are at work.
                for _ in range(1 if job.loose else self._fetch.connections + 1):
                    group.create_task(one_after_another())
        except BaseExceptionGroup as failures:
            raise first_failure(failures) from failures
        finally:
            self._in_ranges -= 1

    def _ask(self, task: Task) -> Future[Checksum | None] | None:
        """Asks the origin what all the bytes come to, where neither a manifest nor the origin itself has said it."""
        if task.row.expected is not None or task.checksum is not None or not task.object.version:
            return None
        return self._asking.submit(task.origin.checksum, task.object)

    async def _carried(self, job: Job, run: Run, is_tail: Callable[[], bool]) -> int:
        """The run's checksum when it is through. In the tail, where all wait for the last ones, a slow one is taken over.

        By a new request that goes on where the old one stands, whose thread may sit in its read for as long as it likes.
        """
        pace, spares = Pace(job, run), 0 if job.loose or run.stands_aside else SPARE_REQUESTS
        while True:
            carry = partial(segment.carry, job, run, run.ticket)
            work = asyncio.create_task(self._in_thread(job, carry, wait=False))
            try:
                while not (await asyncio.wait([work], timeout=LOOK_S))[0]:
                    if is_tail() and spares and pace.is_slow():
                        await asyncio.get_running_loop().run_in_executor(None, job.take_over, run)
                        break
                else:
                    crc = await work
                    job.rates.append((run.stop - run.start) / max(pace.age_s, 1e-6))
                    return crc
            except asyncio.CancelledError:
                work.cancel()
                await asyncio.wait([work])
                raise
            spares -= 1
            work.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # Stopped: it concerns nobody
            log.info("a slow request is overtaken", extra={"origin": job.origin.label, "key": job.object.key, "at": run.at})

    async def _trusted(self, job: Job, row: IngestRow) -> list[SegmentRow]:
        """The journalled segments that the file really holds: a power cut can take bytes that the journal has."""
        rows = self._shelf.index.read(lambda db: ingests.journalled(db, row.id))

        def check() -> list[SegmentRow]:
            kept, at = list[SegmentRow](), 0
            for found in rows:
                if found.start < at:
                    continue  # a row that once was wrong and is right by now: its bytes came again, cut otherwise
                if not job.stop.is_set() and segment.checksum(job.fd, found.start, found.stop) == found.crc:
                    job.frontier.arrived(found.start, found.stop, found.crc)
                    kept.append(found)
                    at = found.stop
            return kept

        kept = await self._in_thread(job, check)
        job.meter.kept = sum(found.stop - found.start for found in kept)
        return kept

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


def _seal(fd: int, *, keep: bool) -> None:
    with durable.disk_errors("syncing a download"):
        durable.seal(fd, keep=keep)
