"""One content onto the shelf: reserved → fetched in segments → verified → committed; resumed where a crash left it.

Single flight per content, however many resolutions want it. A failure leaves nothing visible: either the ingest waits in
`ingest/` with its journal to be resumed, or it is gone.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakValueDictionary

from hotshelf_daemon.flights import Flights
from hotshelf_daemon.index import blobs, ingests, journal
from hotshelf_daemon.index.ingests import IngestRow
from hotshelf_daemon.ingest.adopting import Adoption
from hotshelf_daemon.ingest.commit import Committer, Verified
from hotshelf_daemon.ingest.download import Downloaded, Downloads, Task
from hotshelf_daemon.ingest.receiving import Receiver
from hotshelf_daemon.ingest.segment import Meter
from hotshelf_daemon.origin import Changed, Corrupted, Mirrored, Origin, itself
from hotshelf_daemon.plan import Missing
from hotshelf_daemon.shelf import Shelf
from hotshelf_daemon.states import IngestEvent, IngestState
from hotshelf_daemon.store import blobs as files
from hotshelf_shared.digest import Digest
from hotshelf_shared.errors import IntegrityError

FILES_AT_ONCE = 64
PREFETCHED_AT_ONCE = 8
#: How often what waits as prefetch looks whether somebody asks for it by now, seconds.
LOOK_S = 0.25


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
    #: Whether nobody waits for it; asked again and again.
    is_prefetch: Callable[[], bool] = lambda: False
    #: Whether its pages stay in the page cache.
    keep: bool = True


@dataclass(slots=True)
class _Active:
    meter: Meter
    wanted_by: set[str] = field(default_factory=set)
    ingest: str = ""
    allow_pickle: bool = False
    orders: list[Order] = field(default_factory=list)

    def is_prefetch(self) -> bool:
        """Whoever joins and waits for it changes that for all of it."""
        return all(order.is_prefetch() for order in self.orders)


class _WrongDigest(IntegrityError):
    """All bytes came, and are not what was promised."""


class Ingests:
    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf
        self._fetch = shelf.settings.fetch
        self._committer = Committer(shelf)
        self.receiver = Receiver(shelf, self._committer)
        self._flights: Flights[Brought] = Flights()
        self._active: dict[tuple[str, ...], _Active] = {}
        self._meters: WeakValueDictionary[tuple[str, ...], Meter] = WeakValueDictionary()
        self._downloads = Downloads(shelf)
        self._adoption = Adoption(shelf)
        self._files = {False: asyncio.Semaphore(FILES_AT_ONCE), True: asyncio.Semaphore(PREFETCHED_AT_ONCE)}

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
            active.orders.append(order)
            active.wanted_by.add(order.resolution)
            active.allow_pickle = active.allow_pickle or order.allow_pickle
            try:
                brought = await self._flights.join(key, lambda: self._bring(order, active))  # noqa: B023
            except BaseException:
                active.wanted_by.discard(order.resolution)
                raise
            finally:
                active.orders.remove(order)
                if not active.orders:
                    del self._active[key]
            if brought.kept or not order.allow_pickle:
                return brought  # else it was thrown away before our leave to keep it had arrived: once more

    async def _bring(self, order: Order, active: _Active) -> Brought:
        async with self._file(active):
            self._shelf.metrics.ingest_active.inc()
            try:
                try:
                    return await self._attempt(order, active)
                except IntegrityError as error:
                    promised = order.missing.digest is not None or isinstance(error, Corrupted)
                    if isinstance(error, Changed) or not promised:
                        raise
                    # Wrong bytes against a digest or checksum: a mirror's lie or a proxy's hiccup: the origin is asked.
                    self._shelf.metrics.verify_failures.labels("digest").inc()
                    if isinstance(error, _WrongDigest):
                        await self._accuse(order)
                    return await self._attempt(replace(order, origin=itself(order.origin)), active)
            finally:
                self._shelf.metrics.ingest_active.dec()

    async def _accuse(self, order: Order) -> None:
        """Mirrors that gave some of the wrong bytes are to be seen, and not asked for a while."""
        key = order.missing.object.key
        for liar in order.origin.lied(key) if isinstance(order.origin, Mirrored) else ():
            await self._shelf.index.write(lambda db: journal.event(db, "mirror_lied", liar, key))  # noqa: B023

    @asynccontextmanager
    async def _file(self, active: _Active) -> AsyncIterator[None]:
        """One of the files that may be open at once. What waits as prefetch and is asked for by then, waits so no longer."""
        while True:
            prefetch = active.is_prefetch()
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S if prefetch else None):
                    await self._files[prefetch].acquire()
                break
        try:
            yield
        finally:
            self._files[prefetch].release()

    async def _attempt(self, order: Order, active: _Active) -> Brought:
        item = order.missing

        row = await self._begun(item, active)
        try:
            # A mirror is asked for nothing that could not be held against a digest.
            origin = order.origin if item.digest is not None else itself(order.origin)
            task = Task(origin, item.object, row, active.meter, active.is_prefetch, order.keep)
            done = await self._adoption.adopt(task) or await self._downloads.download(task)
        except BaseException as error:
            drop = isinstance(error, IntegrityError) or self._downloads.is_small(row.size)
            await asyncio.shield(asyncio.create_task(self._interrupt(row, drop=drop)))
            raise
        if item.digest is not None and done.digest != item.digest:
            done.close()
            await self._reject(row)
            raise _WrongDigest(
                f"{item.object.key} has the digest {done.digest}, and {item.digest} was promised",
                key=item.object.key,
                promised=item.digest,
                found=done.digest,
            )
        if done.unsafe and not active.allow_pickle:
            done.close()
            await self._reject(row, blobs.Learnt(row.origin, row.key, row.version, row.size, done.digest, done.unsafe))
            return Brought(done.digest, row.size, done.unsafe, kept=False)
        verified = Verified(row, done.digest, done.unsafe, active.wanted_by)
        keeping: asyncio.Future[None]
        if done.is_sealed:
            keeping = self._committer.commit(verified)
        else:
            keeping = asyncio.create_task(self._keep(verified, done, keep=order.keep))
        try:
            await asyncio.shield(keeping)
        except asyncio.CancelledError:
            await asyncio.wait([keeping])  # what is being synced or committed is through, or gone, before anybody hears of it
            keeping.exception()
            raise
        return Brought(done.digest, row.size, done.unsafe)

    async def _begun(self, item: Missing, active: _Active) -> IngestRow:
        """The row of this object, its room reserved. That it is being fetched is written down where it may be resumed."""

        def begin(db: Any) -> IngestRow:
            row = _begin(db, item)
            active.ingest = row.id  # before anybody can see the row, and take it for abandoned
            return row

        if self._downloads.is_small(item.object.size):
            row = self._shelf.index.read(lambda db: ingests.find(db, item.origin, item.object, item.digest))
            if row is not None and row.state is IngestState.RESERVED:
                active.ingest = row.id
                return row
        return await self._shelf.index.write_brief(begin)

    async def _keep(self, verified: Verified, done: Downloaded, *, keep: bool) -> None:
        """Synced and committed. Not to be cut short: a batch that has begun to commit does so for all in it."""
        try:
            await self._downloads.seal(done, keep=keep)
        except Exception:
            await self._interrupt(verified.row, drop=True)  # after a failed sync nothing in the file can be trusted
            raise
        await self._committer.commit(verified)

    async def _interrupt(self, row: IngestRow, *, drop: bool) -> None:
        """Stopped half-way: what arrived waits to be resumed, unless it cannot be trusted."""
        if drop:
            await asyncio.to_thread(files.drop_ingest, self._shelf.layout, row.id)
        await self._shelf.index.write(lambda db: _interrupt(db, row.id, drop=drop))

    async def _reject(self, row: IngestRow, fact: blobs.Learnt | None = None) -> None:
        await asyncio.to_thread(files.drop_ingest, self._shelf.layout, row.id)

        def change(db: Any) -> None:
            if ingests.state(db, row.id) is IngestState.RESERVED:
                ingests.advance(db, row.id, IngestEvent.FETCH)
            ingests.advance(db, row.id, IngestEvent.VERIFY)
            ingests.advance(db, row.id, IngestEvent.REJECT)
            ingests.close(db, [row.id])
            if fact is not None:
                blobs.learn(db, [fact])

        await self._shelf.index.write(change)


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
    if ingests.state(db, id_) is not IngestState.RESERVED:
        ingests.advance(db, id_, IngestEvent.INTERRUPT)
    if drop:
        ingests.forget_journal(db, id_)
