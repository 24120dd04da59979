"""A resolution onto the shelf: room first, then every missing blob, then the checks that need them all, then visible.

Single flight per resolution. `hold` comes before the first byte: leases, wanted blobs and reservations in the index.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import replace

from hotshelf_daemon import collect, plan
from hotshelf_daemon.acquire import flipping, resolve
from hotshelf_daemon.acquire.bundles import Bundles, is_bundle
from hotshelf_daemon.acquire.contents import check_contents
from hotshelf_daemon.acquire.gauge import Gauge
from hotshelf_daemon.acquire.names import Want
from hotshelf_daemon.acquire.pipelines import Pipelines, is_pipeline
from hotshelf_daemon.acquire.vouching import vouch
from hotshelf_daemon.flights import Flights, first_failure
from hotshelf_daemon.index import blobs, ingests, preparing, rollbacks, snapshots
from hotshelf_daemon.index.rollbacks import RollbackRow
from hotshelf_daemon.index.snapshots import RefRow
from hotshelf_daemon.ingest import Brought, Ingests, Order
from hotshelf_daemon.materialize import BlobsGone, Turned, materialize
from hotshelf_daemon.origin import Changed, Directory
from hotshelf_daemon.plan import Missing, Resolution
from hotshelf_daemon.shelf import Shelf
from hotshelf_daemon.store import blobs as files
from hotshelf_daemon.store import durable
from hotshelf_shared.digest import Digest, Revision
from hotshelf_shared.errors import Conflict, HotshelfError, InsufficientSpace, NotFound

log = logging.getLogger(__name__)
RESOLVERS = 16
ROUNDS = 3


class Preparer:
    def __init__(
        self, shelf: Shelf, directory: Directory, ingests_: Ingests, *, pipelines: Pipelines, bundles: Bundles
    ) -> None:
        self._shelf = shelf
        self._directory = directory
        self._pipelines, self._bundles = pipelines, bundles
        self._ingests = ingests_
        self._resolving: Flights[Resolution] = Flights()
        self._preparing: Flights[RefRow] = Flights()
        self._at_work: Counter[str] = Counter()
        self._claims: Counter[str] = Counter()
        self._waited_for: Counter[str] = Counter()
        self._threads = ThreadPoolExecutor(RESOLVERS, thread_name_prefix="resolve")

    def busy(self) -> set[str]:
        """Ingests that are being carried out, or are promised to an acquire that is about to."""
        return self._ingests.active() | {id_ for id_, count in self._claims.items() if count > 0}

    async def resolve(self, want: Want) -> Resolution:
        """What the want stands for at its origin now; asked once for everyone who asks at the same time."""
        return await self._resolving.join(want.key, lambda: self._resolve(want))

    async def _resolve(self, want: Want) -> Resolution:
        if is_pipeline(want):
            return await self._pipelines.resolve(want)
        if is_bundle(want):
            return await self._bundles.resolve(want)
        rollback = self._shelf.index.read(lambda db: rollbacks.find(db, str(want.source)))
        if rollback is None:
            frozen = flipping.frozen_at(want, self._shelf.index.read(lambda db: snapshots.ref(db, want.key)))
            return await (self._ask(want) if frozen is None else self._ask_for(want, frozen, "been frozen"))
        return replace(await self._ask_for(want, rollback), rolled_back_at=rollback.at)

    async def _ask_for(self, want: Want, rollback: RollbackRow, why: str = "been rolled back") -> Resolution:
        """What a source that was rolled back is to stay at. Raises NotFound when its origin does not have that."""
        try:
            found = await self._ask(want, release=rollback.release, commit=rollback.commit)
        except NotFound as error:
            raise flipping.gone(want, rollback, why) from error
        ref = self._shelf.index.read(lambda db: snapshots.ref(db, want.key))
        if rollback.release is None and rollback.commit is None and (ref is None or ref.listing != found.id):
            raise flipping.gone(want, rollback, why)  # never published: only the very objects that it was taken from will do
        return found

    async def resolve_anew(self, want: Want) -> Resolution:
        """What its origin has now, also where the source was rolled back: then it does not flip by itself."""
        at = self._shelf.index.read(lambda db: rollbacks.moment(db, str(want.source)))
        resolution = await self._resolving.join((want.key, at, "now"), lambda: self._ask(want))
        return resolution if at is None else replace(resolution, rolled_back_at=at, flips=False)

    async def _ask(self, want: Want, *, release: Revision | None = None, commit: str | None = None) -> Resolution:
        """What its origin has now, or that published revision or commit. Raises NotFound when it has not."""
        in_thread, trusted = asyncio.get_running_loop().run_in_executor, self._shelf.keyring.required(want.source)
        origin = await asyncio.to_thread(self._directory.origin_of, want.source)
        pinned = want if release is None else replace(want, source=want.source.pin(release))
        if commit is not None:
            pinned = replace(want, source=replace(want.source, ref=commit))
        found = await in_thread(self._threads, resolve.find, origin, pinned)
        if release is not None and found.revision != release:
            raise NotFound(f"{release} is not published at {want.source}")
        keys = [file.object.key for file in found.files if file.digest is None]
        learnt = self._shelf.index.read(lambda db: blobs.learnt(db, origin.name, keys))
        resolution = resolve.narrow(want, origin, found, learnt, signed=bool(trusted))
        if not trusted:
            return resolution
        vouched = await in_thread(self._threads, vouch, origin, want, found, resolution, trusted)
        return replace(resolution, vouched=vouched)

    def accepts(self, want: Want, ref: RefRow) -> bool:
        """Whether what is held may be served: verified by a key that is trusted now, where its origin needs that."""
        return self._shelf.keyring.accepts(want.source, ref.signed_by)

    @contextmanager
    def at_work(self, wants: Iterable[Want]) -> Iterator[bool]:
        """Around all the work for these wants, from resolving on; whether somebody else was at one of them already."""
        keys = {want.key for want in wants}
        joined = any(self._at_work[key] for key in keys)
        self._at_work.update(keys)
        try:
            yield joined
        finally:
            self._at_work.subtract(keys)
            self._at_work += Counter()

    def is_alone(self, resolution: Resolution) -> bool:
        """Whether nobody but the caller, who is at work for it, counts on this resolution."""
        return self._at_work[resolution.wish] <= 1

    def gauge(self, gauge: Gauge, items: Iterable[Missing]) -> None:
        """Lets the gauge read how far these contents are, whoever fetches them."""
        gauge.meters = [self._ingests.meter(item) for item in items]

    def missing(self, resolutions: Iterable[Resolution]) -> list[Missing]:
        resolutions = [*resolutions]
        known = [file.digest for resolution in resolutions for file in resolution.files if file.digest]
        return plan.missing(resolutions, self._shelf.index.read(lambda db: blobs.sizes(db, known)))

    async def reserve(self, resolutions: Sequence[Resolution], *, evict: bool) -> list[str]:
        """Room for what is missing of all of them together, or for none; the ingests promised.

        The resolutions and the blobs they want are roots already. Raises InsufficientSpace or TooLarge.
        """
        async with self._shelf.hand:
            items = self.missing(resolutions)
            rows = self._shelf.index.read(lambda db: [ingests.find(db, i.origin, i.object, i.digest) for i in items])
            new = [
                ingests.new_row(item.origin, item.object, item.digest)
                for item, row in zip(items, rows, strict=True)
                if row is None
            ]
            found = [row.id for row in rows if row is not None]
            with self._claimed(found):
                await collect.make_room(self._shelf, sum(row.size for row in new), active=self.busy(), evict=evict)
                await self._shelf.hand.finish(self._shelf.index.write(lambda db: ingests.reserve(db, new)))
                promised = [*found, *(row.id for row in new)]
                self._claims.update(promised)  # until `unclaim`: nobody makes room with what is reserved here
        return promised

    async def unclaim(self, promised: Sequence[str]) -> None:
        """The acquire has ended: reservations that nobody has begun to fill are given back."""
        self._claims.subtract(promised)
        self._claims += Counter()
        idle = set(promised) - self.busy()

        def give_back(db: sqlite3.Connection) -> list[str]:
            empty = [row.id for row in ingests.everything(db) if row.id in idle and not ingests.journalled(db, row.id)]
            ingests.close(db, empty)
            return empty

        if idle:
            for id_ in await self._shelf.index.write(give_back):
                await asyncio.to_thread(files.drop_ingest, self._shelf.layout, id_)
            self._shelf.room_bell.ring()

    async def prepare(self, want: Want, resolution: Resolution, gauge: Gauge, *, prefetch: bool) -> RefRow:
        """The resolution as a ready snapshot with a ref. Raises Changed when its origin moved on meanwhile."""
        gauge.enter("fetch")
        with self._waiting(resolution) if not prefetch else nullcontext():
            return await self._preparing.join(resolution.id, lambda: self._prepare(want, resolution, gauge, prefetch))

    @contextmanager
    def _waiting(self, resolution: Resolution) -> Iterator[None]:
        """Somebody waits for it: it is no prefetch any more, whatever it began as."""
        self._waited_for[resolution.id] += 1
        try:
            yield
        finally:
            self._waited_for[resolution.id] -= 1
            self._waited_for += Counter()

    async def _prepare(self, want: Want, resolution: Resolution, gauge: Gauge, prefetch: bool) -> RefRow:
        try:
            for _ in range(ROUNDS):
                facts = await self._fetch(want, resolution, prefetch=prefetch)
                gauge.enter("verify")
                tree, skipped = flipping.tree_of(want, resolution, facts)
                before = self._shelf.index.read(lambda db: snapshots.ref(db, want.key))
                ref = flipping.ref_of(want, resolution, tree, skipped, before=before, now=time.time())
                await self._check_unchanged(want, resolution)
                await asyncio.to_thread(check_contents, self._shelf.layout, tree, want.policy)
                gauge.enter("commit")
                try:
                    binding = self._pipelines.binding(resolution) or await self._bundles.binding(resolution)
                    await materialize(
                        self._shelf,
                        tree,
                        ref,
                        resolution=resolution.id,
                        binding=binding,
                        rolled_back_at=resolution.rolled_back_at,
                        flips=resolution.flips,
                    )
                except Conflict as conflict:
                    raise Changed(f"{want.source} was bound here meanwhile") from conflict
                except Turned as turned:
                    raise Changed(f"{want.source} was rolled back or refreshed meanwhile") from turned
                except BlobsGone as gone:
                    log.warning("blobs went away before their snapshot was made", extra={"count": len(gone.digests)})
                    continue
                return ref
            raise HotshelfError(f"blobs of {want.source} keep disappearing", hint="Is somebody deleting below the store?")
        except BaseException as error:
            why = error.code if isinstance(error, HotshelfError) else type(error).__name__
            await self._shelf.index.write(lambda db: preparing.fail(db, resolution.id, why))
            raise

    async def _fetch(self, want: Want, resolution: Resolution, *, prefetch: bool) -> dict[str, Brought]:
        """Every file's content, by path: what is held as it is, the rest through ingest, the largest first."""
        known = [file.digest for file in resolution.files if file.digest]
        sizes, unsafe = self._shelf.index.read(lambda db: (blobs.sizes(db, known), blobs.unsafe(db)))
        items = plan.missing([resolution], sizes)
        keep = self._shelf.settings.fetch.keeps_pages(sum(item.object.size for item in items))
        brought: dict[tuple[str, ...], Brought] = {}
        origin = await asyncio.to_thread(self._directory.origin_of, want.source) if items else None

        def nobody_waits() -> bool:
            return not self._waited_for[resolution.id]

        async def one(item: Missing) -> None:
            assert origin is not None
            order = Order(item, origin, resolution.id, want.policy.allow_pickle, nobody_waits, keep)
            try:
                brought[item.key] = await self._ingests.bring(order)
            except durable.DiskFull as full:
                if prefetch:
                    raise
                await self._make_way(item.object.size, full)
                brought[item.key] = await self._ingests.bring(order)

        try:
            async with asyncio.TaskGroup() as group:
                for item in items:
                    group.create_task(one(item))
        except BaseExceptionGroup as failures:
            raise first_failure(failures) from failures
        facts = {}
        for file in resolution.files:
            if file.digest is not None and file.digest in sizes:
                facts[file.path] = Brought(file.digest, sizes[file.digest], unsafe.get(file.digest))
            else:
                facts[file.path] = brought[Missing(resolution.origin, file.object, file.digest).key]
        return facts

    async def _make_way(self, size: int, full: HotshelfError) -> None:
        """The disk has less room than it said: what nothing holds makes way. Raises InsufficientSpace."""
        try:
            async with self._shelf.hand:
                await collect.make_room(self._shelf, size, active=self.busy(), full=True)
        except InsufficientSpace as refusal:
            raise InsufficientSpace(
                f"{full.message}; {size:,} bytes are needed, and {refusal.message}", hint=full.hint, **refusal.details
            ) from full

    async def _check_unchanged(self, want: Want, resolution: Resolution) -> None:
        """A folder without a manifest is listed again: a mixture of two uploads must never be published."""
        if resolution.commit or resolution.published or resolution.kind == "file":
            return
        if (await self._ask(want)).id != resolution.id:
            raise Changed(f"{want.source} changed while it was fetched")

    @contextmanager
    def _claimed(self, ids: Sequence[str]) -> Iterator[None]:
        self._claims.update(ids)
        try:
            yield
        finally:
            self._claims.subtract(ids)


def wanted_digests(resolution: Resolution) -> set[Digest]:
    return {file.digest for file in resolution.files if file.digest is not None}
