"""Verified ingests become blobs, a batch at a time: whoever is ready while a batch is being synced goes with the next.

The order is the guarantee: sealed files are renamed, their directories synced, then one durable transaction, and only
then does anybody hear of it. A batch of many small files costs one round of syncs.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from hotshelf_daemon.index import blobs, handed_in, ingests, preparing
from hotshelf_daemon.index.ingests import IngestRow
from hotshelf_daemon.shelf import Shelf
from hotshelf_daemon.states import IngestEvent
from hotshelf_daemon.store import blobs as files
from hotshelf_shared.digest import Digest


@dataclass(frozen=True, slots=True)
class Verified:
    """A sealed ingest whose bytes are right. `unsafe` is why it needs leave to be used, `wanted_by` whose it is.

    `handed_in_by` is the uid of the worker whose bytes they are; None when an origin sent them.
    """

    row: IngestRow
    digest: Digest
    unsafe: str | None
    wanted_by: set[str]
    handed_in_by: int | None = None


class Committer:
    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf
        self._waiting: list[tuple[Verified, asyncio.Future[None]]] = []
        self._running: asyncio.Task[None] | None = None

    def commit(self, item: Verified) -> asyncio.Future[None]:
        """Done when the blob would survive a power cut. A caller who is cancelled does not take the batch along."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, done))
        if self._running is None:
            self._running = asyncio.create_task(self._run())
        return done

    async def drain(self) -> None:
        if self._running is not None:
            await self._running

    async def _run(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            failure: Exception | None = None
            try:
                async with self._shelf.hand:
                    await self._carry_out([item for item, _ in batch])
            except Exception as error:
                failure = error
            for _, done in batch:
                if done.done():
                    continue
                if failure is None:
                    done.set_result(None)
                else:
                    done.set_exception(failure)
        self._running = None

    async def _carry_out(self, items: list[Verified]) -> None:
        index, layout = self._shelf.index, self._shelf.layout
        held = index.read(lambda db: blobs.sizes(db, [item.digest for item in items]))
        await asyncio.to_thread(files.publish, layout, {item.row.id: item.digest for item in items}, known=held)
        try:
            await index.write(lambda db: _record(db, items), durable=True)
        except Exception:
            await asyncio.to_thread(files.withdraw, layout, {item.digest for item in items} - held.keys())
            raise


def _record(db: sqlite3.Connection, items: Iterable[Verified]) -> None:
    items = list(items)
    blobs.add(db, {i.digest: i.row.size for i in items}, {i.digest: i.unsafe for i in items})
    fetched = [item for item in items if item.handed_in_by is None]
    blobs.learn(db, (blobs.Learnt(i.row.origin, i.row.key, i.row.version, i.row.size, i.digest, i.unsafe) for i in fetched))
    wanted = defaultdict[str, list[Digest]](list)
    for item in items:
        if item.handed_in_by is not None:
            ingests.advance(db, item.row.id, IngestEvent.COMMIT)
            handed_in.hold(db, item.digest, item.handed_in_by)
        for resolution in item.wanted_by:
            wanted[resolution].append(item.digest)
    for resolution, digests in wanted.items():
        preparing.want(db, resolution, digests)
    ingests.complete(db, [item.row.id for item in items])
