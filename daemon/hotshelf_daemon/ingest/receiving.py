"""One content in from a worker: written and hashed while it arrives, verified, then committed as a download is.

A failure leaves nothing: not the file, not the reservation. What is cut off half-way is not resumed, since the worker that
had the bytes may be gone with them.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Sequence
from typing import Any

from hotshelf_daemon.index import ingests
from hotshelf_daemon.index.ingests import IngestRow
from hotshelf_daemon.ingest.commit import Committer, Verified
from hotshelf_daemon.policy import reason_by_bytes
from hotshelf_daemon.shelf import Shelf
from hotshelf_daemon.states import IngestEvent
from hotshelf_daemon.store import blobs as files
from hotshelf_daemon.store import durable
from hotshelf_shared.digest import Digest
from hotshelf_shared.errors import IntegrityError, InvalidRequest, Timeout, UnsafeContent

#: Bytes that go to the writing thread at once; one such batch is written while the next one arrives.
BATCH_BYTES = 1 << 20


class Receiver:
    def __init__(self, shelf: Shelf, committer: Committer) -> None:
        self._shelf = shelf
        self._committer = committer
        #: Reserved by whoever calls `receive`, until it is a blob or gone.
        self.active: set[str] = set()

    async def receive(self, row: IngestRow, digest: Digest, body: AsyncIterator[bytes], *, uid: int) -> None:
        """`body` as a blob, durable, and a root for `uid`. `row` is its reservation, and is gone in any case.

        Raises IntegrityError, UnsafeContent, InvalidRequest (too few bytes), Timeout, InsufficientSpace.
        """
        self._shelf.metrics.ingest_active.inc()
        try:
            try:
                await self._take_in(row, digest, body)
            except BaseException:
                await asyncio.shield(asyncio.create_task(self.drop(row)))
                raise
            # Not to be cut short: a batch that has begun to commit does so for all in it.
            await asyncio.shield(asyncio.create_task(self._commit(Verified(row, digest, None, set(), handed_in_by=uid))))
        finally:
            self._shelf.metrics.ingest_active.dec()

    async def _take_in(self, row: IngestRow, digest: Digest, body: AsyncIterator[bytes]) -> None:
        """All of it in the ingest's file, right and sealed."""
        await self._shelf.index.write(lambda db: ingests.advance(db, row.id, IngestEvent.FETCH))
        fd = await self._open(row)
        sink = _Sink(fd)
        try:
            await self._pour(body, sink)
            if sink.at != row.size:
                raise InvalidRequest(f"the body ended after {sink.at:,} of {row.size:,} bytes")
            if sink.digest != digest:
                self._shelf.metrics.verify_failures.labels("digest").inc()
                raise IntegrityError(
                    f"the bytes handed in as {digest} are {sink.digest}",
                    hint="Take the digest of what you send.",
                )
            if reason := await sink.on_thread(reason_by_bytes, fd, row.size):
                raise UnsafeContent(f"the bytes handed in as {digest} are left out: {reason}", reason=reason)
            await self._shelf.index.write(lambda db: ingests.advance(db, row.id, IngestEvent.VERIFY))
            await sink.on_thread(_sync, fd)
        finally:
            sink.close()

    async def _open(self, row: IngestRow) -> int:
        opening = asyncio.create_task(asyncio.to_thread(files.open_ingest, self._shelf.layout, row.id, row.size, resume=False))
        try:
            return (await asyncio.shield(opening))[0]
        except asyncio.CancelledError:
            os.close((await opening)[0])  # else the file would appear after it has been dropped
            raise

    async def _pour(self, body: AsyncIterator[bytes], sink: _Sink) -> None:
        idle_s = self._shelf.settings.handin_idle_s
        while True:
            try:
                async with asyncio.timeout(idle_s):
                    batch = await _batch(body)
            except TimeoutError:
                raise Timeout(f"the worker sent less than {BATCH_BYTES:,} bytes in {idle_s:g} s") from None
            await sink.settled()
            if not batch:
                return
            sink.write(batch)

    async def _commit(self, item: Verified) -> None:
        try:
            await self._committer.commit(item)
        except BaseException:
            await self.drop(item.row)
            raise
        self.active.discard(item.row.id)

    async def drop(self, row: IngestRow) -> None:
        """Its file and its reservation go."""
        try:
            await asyncio.to_thread(files.drop_ingest, self._shelf.layout, row.id)
            await self._shelf.index.write(lambda db: ingests.close(db, [row.id]))
        finally:
            self.active.discard(row.id)


class _Sink:
    """The file, its length and its hash. One batch at a time is with a thread; the descriptor outlives it."""

    def __init__(self, fd: int) -> None:
        self.at = 0
        self._fd = fd
        self._hash = hashlib.sha256()
        self._busy: asyncio.Future[Any] | None = None

    @property
    def digest(self) -> Digest:
        return Digest.from_hex(self._hash.hexdigest())

    def write(self, batch: Sequence[bytes]) -> None:
        at, self.at = self.at, self.at + sum(map(len, batch))
        self._busy = asyncio.get_running_loop().run_in_executor(None, self._put, batch, at)

    async def settled(self) -> None:
        """When the batch before is written. Raises what went wrong with it."""
        if self._busy is not None:
            await asyncio.shield(self._busy)

    async def on_thread(self, work: Any, *args: Any) -> Any:
        self._busy = asyncio.get_running_loop().run_in_executor(None, work, *args)
        return await asyncio.shield(self._busy)

    def close(self) -> None:
        """At once, or when the thread that still works on the descriptor has done so."""
        if self._busy is None or self._busy.done():
            os.close(self._fd)
        else:
            self._busy.add_done_callback(self._close_after)

    def _close_after(self, ended: asyncio.Future[Any]) -> None:
        os.close(self._fd)
        ended.exception()  # seen: it concerns nobody any more

    def _put(self, batch: Sequence[bytes], at: int) -> None:
        with durable.disk_errors("writing what a worker hands in"):
            for piece in batch:
                self._hash.update(piece)
                durable.pwrite_all(self._fd, memoryview(piece), at)
                at += len(piece)


def _sync(fd: int) -> None:
    with durable.disk_errors("syncing what a worker handed in"):
        os.fchmod(fd, 0o440)
        os.fsync(fd)


async def _batch(body: AsyncIterator[bytes]) -> list[bytes]:
    """The next pieces, BATCH_BYTES or a little more; less only at the end."""
    pieces, size = [], 0
    async for piece in body:
        pieces.append(piece)
        size += len(piece)
        if size >= BATCH_BYTES:
            break
    return pieces
