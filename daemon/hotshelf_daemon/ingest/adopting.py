"""One object's bytes into its ingest's file out of a cache that lies on this machine, instead of from its origin.

Without a copy where the file system can share bytes between files, each of which keeps its own when the other changes. What is
hashed is the ingest's file, or what is written into it: whoever writes to the cache meanwhile changes neither. From then on it
is a download like any other. Whatever is wrong with a cache costs a try, and the origin is asked.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from concurrent.futures import ThreadPoolExecutor

from hotshelf_daemon.config import Settings
from hotshelf_daemon.ingest.download import FETCH_NICE, SPARE_THREADS, Downloaded, Task
from hotshelf_daemon.ingest.frontier import Frontier
from hotshelf_daemon.ingest.moving import WRITTEN_BYTES, pieces_of
from hotshelf_daemon.ingest.segment import Job
from hotshelf_daemon.ingest.threads import through
from hotshelf_daemon.origin.caches import Caches, Found, is_git_s, name_of
from hotshelf_daemon.policy import reason_by_bytes
from hotshelf_daemon.shelf import Shelf
from hotshelf_daemon.store import blobs as files
from hotshelf_daemon.store import durable

log = logging.getLogger(__name__)
#: Files that are adopted at once: hashing is what takes long, and downloads hash as well.
FILES_AT_ONCE = min(4, os.cpu_count() or 1)
#: How long caches are not asked when one of them did not answer, seconds.
AWAY_S = 300.0
#: After so many bytes the disk is told to begin with them.
WRITTEN_EARLY_BYTES = 16 << 20
#: So much is read back of what was cloned before it is looked whether to go on.
READ_BYTES = 1 << 20
#: What adopted bytes are counted as, beside the origins.
LABEL = "hub-cache"


class Adoption:
    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf
        self._caches = Caches(folders(shelf.settings))
        self._silent_s = shelf.settings.fetch.idle_timeout_s
        self._rests_until = time.monotonic()
        self._files = asyncio.Semaphore(FILES_AT_ONCE)
        self._threads = ThreadPoolExecutor(SPARE_THREADS * FILES_AT_ONCE, "adopt", durable.be_modest, (FETCH_NICE,))
        self._looking = ThreadPoolExecutor(SPARE_THREADS, "look", durable.be_modest, (FETCH_NICE,))

    async def adopt(self, task: Task) -> Downloaded | None:
        """None where no cache has it as it should be. Raises what is wrong with the store."""
        name = name_of(task.row.origin, task.object, task.row.expected)
        if not self._caches or name is None or not task.row.size or not await self._is_listed(name):
            return None
        async with self._files:
            if time.monotonic() < self._rests_until:
                return None
            task.meter.parts.clear()
            task.meter.kept = 0
            job = Job(task.origin, task.object, -1, Frontier(-1, task.row.size), task.meter, attempts=1)
            work = asyncio.get_running_loop().run_in_executor(self._threads, self._bring, job, task, name)
            try:
                while not (await asyncio.wait([work], timeout=self._silent_s))[0]:
                    if time.monotonic() - job.last_at > self._silent_s:
                        raise _Silent
                return work.result()
            except BaseException as error:
                work.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # seen: it concerns nobody
                await through(job.halt)  # the thread may still be at it; if it sits in a read it is not waited for
                if job.fd >= 0:
                    os.close(job.fd)
                if not isinstance(error, _Silent):
                    raise
        self._rest()
        return None

    async def _is_listed(self, name: str) -> bool:
        if time.monotonic() < self._rests_until:
            return False
        work = asyncio.get_running_loop().run_in_executor(self._looking, self._caches.lists, name)
        if (await asyncio.wait([work], timeout=self._silent_s))[0]:
            return work.result()
        self._rest()
        return False

    def _rest(self) -> None:
        """Raises CancelledError for whoever has been given up while a thread was waited for."""
        self._rests_until = time.monotonic() + AWAY_S
        log.warning("a Hugging Face cache does not answer, and is not asked for a while", extra={"seconds": AWAY_S})
        if (task := asyncio.current_task()) is not None and task.cancelling():
            raise asyncio.CancelledError

    def _bring(self, job: Job, task: Task, name: str) -> Downloaded | None:
        began = job.last_at = time.monotonic()
        with self._caches.opened(name, task.row.size) as found:
            if found is None:
                return None
            with job.touching(), durable.disk_errors("making room for what lies in a cache"):
                job.fd, _ = files.open_ingest(self._shelf.layout, task.row.id, 0, resume=False)
                job.frontier = Frontier(job.fd, task.row.size, keep=task.keep)
                is_clone = durable.clone(found.fd, job.fd)
                if not is_clone:
                    durable.allocate(job.fd, task.row.size)
            try:
                done = self._judged(job, task, name, found, is_clone=is_clone)
            except _Wrong as error:
                self._caches.wrong(found, str(error))
                with job.touching():
                    os.close(job.fd)
                    job.fd = -1
                    files.drop_ingest(self._shelf.layout, task.row.id)
                return None
        self._shelf.metrics.origin_bytes.labels(LABEL).inc(task.row.size)
        told = {"path": found.path, "key": task.object.key, "bytes": task.row.size, "cloned": is_clone}
        log.info("adopted", extra={**told, "seconds": round(time.monotonic() - began, 3)})
        return done

    def _judged(self, job: Job, task: Task, name: str, found: Found, *, is_clone: bool) -> Downloaded:
        if is_clone:
            _read(job, task.row.size)
        else:
            _copy(job, found, task.row.size)
        with job.touching(), durable.disk_errors("reading what lay in a cache"):
            digest = job.frontier.digest()
            if task.row.expected is None and not is_git_s(name, task.row.size, pieces_of(job.fd, 0, task.row.size)):
                raise _Wrong("git calls its bytes otherwise")
            if task.row.expected not in (None, digest):
                raise _Wrong(f"its bytes are {digest}")
            return Downloaded(job.fd, digest, reason_by_bytes(job.fd, task.row.size))


class _Wrong(Exception):
    """The cache has not got what it says."""


class _Silent(Exception):
    """The cache does not answer."""


def folders(settings: Settings) -> list[str]:
    """The caches that are not the shelf's own view: where workers get HF_HUB_CACHE, the daemon may get it too."""
    store = os.path.realpath(settings.store)
    return [path for path in settings.hf.caches if not f"{os.path.realpath(path)}/".startswith(f"{store}/")]


def _read(job: Job, size: int) -> None:
    """What the ingest's file has by now, through the hash. Raises _Wrong; and Stopped, as `_copy` does."""
    for start in range(0, size, READ_BYTES):
        at, stop = start, min(start + READ_BYTES, size)
        with job.touching():
            try:
                for piece in pieces_of(job.fd, start, stop):
                    job.frontier.feed(piece)
                    at += len(piece)
                there = os.fstat(job.fd).st_size
                job.frontier.let_go()
            except OSError as error:
                raise _Wrong(f"reading it failed: {error.strerror}") from error
        if at < stop or there != size:
            raise _Wrong(f"it has {there:,} bytes of {size:,}")
        _came(job, at)


def _copy(job: Job, found: Found, size: int) -> None:
    """The file's bytes into the hash, and the same ones into the ingest's file."""
    at, early, pieces = 0, 0, pieces_of(found.fd, 0, size)
    while at < size:
        try:
            piece = next(pieces, memoryview(b""))
        except OSError as error:
            raise _Wrong(f"reading it failed: {error.strerror}") from error
        if not piece:
            raise _Wrong(f"it ended after {at:,} of {size:,} bytes")
        with job.touching(), durable.disk_errors("writing what lies in a cache"):
            for start in range(0, len(piece), WRITTEN_BYTES):
                durable.pwrite_all(job.fd, piece[start : start + WRITTEN_BYTES], at + start)
            job.frontier.feed(piece)
            at += len(piece)
            if at - early >= WRITTEN_EARLY_BYTES:
                durable.start_writeback(job.fd, early, at)  # so that the disk has less to do in the end
                job.frontier.let_go()
                early = at
        _came(job, at)


def _came(job: Job, at: int) -> None:
    job.meter.parts[0], job.last_at = at, time.monotonic()
