"""Leases: granted, renewed, released, expired. The index has their rows, the book their deadlines.

Invariant: a lease row is committed before anybody is told of it, and is opened on a ready snapshot or on a resolution
under way, never on nothing.
"""

from __future__ import annotations

import asyncio
import secrets
import sqlite3
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from hotshelf_daemon.acquire.book import Book
from hotshelf_daemon.acquire.names import Want
from hotshelf_daemon.acquire.prepare import wanted_digests
from hotshelf_daemon.index import Unwritable, journal, leases, preparing, snapshots
from hotshelf_daemon.index.leases import LeaseRow
from hotshelf_daemon.index.snapshots import RefRow
from hotshelf_daemon.origin import Changed
from hotshelf_daemon.plan import Resolution
from hotshelf_daemon.shelf import Shelf
from hotshelf_daemon.store import bundles, trees
from hotshelf_shared.bundle import BundleName
from hotshelf_shared.digest import Revision
from hotshelf_shared.errors import InsufficientSpace
from hotshelf_shared.manifest import Manifest
from hotshelf_shared.source import Source
from hotshelf_shared.wire import AcquireRequest, LeaseAnswer, RenewRequest

KEPT_MANIFESTS = 256


class Evicted(Changed):
    """What was ready went at this very moment, and its origin had nothing to do with it."""


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end of the socket, by the kernel's word; `is_admin` by the configuration's."""

    uid: int
    gid: int
    pid: int
    groups: frozenset[int] = frozenset()
    is_admin: bool = False


@dataclass(frozen=True, slots=True)
class Holder:
    """On whose behalf leases are opened."""

    peer: Peer
    client: str | None
    hold_s: float | None

    @classmethod
    def of(cls, request: AcquireRequest, peer: Peer) -> Holder:
        return cls(peer, request.client, request.hold_s)


class Leasing:
    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf
        self._book = Book(shelf.settings.lease_eof_s)
        self._ended: set[str] = set()
        self._manifests: OrderedDict[Revision, Manifest] = OrderedDict()

    def __len__(self) -> int:
        return len(self._book)

    async def resume(self) -> None:
        """At start: every lease of the last daemon is kept for one TTL."""
        await self._shelf.index.write(leases.void_unbound)
        for row in self._shelf.index.read(leases.everything):
            self._book.enter(row, time.monotonic())

    def _row(self, want: Want, holder: Holder, *, revision: Revision | None = None, resolution: str | None = None) -> LeaseRow:
        settings, peer = self._shelf.settings, holder.peer
        return LeaseRow(
            id=secrets.token_hex(16),
            uid=peer.uid,
            pid=peer.pid,
            client=holder.client,
            source=str(want.source),
            ttl_s=settings.lease_ttl_s if holder.hold_s is None else min(holder.hold_s, settings.lease_hold_max_s),
            resolution=resolution,
            revision=revision,
        )

    async def grant(self, refs: Sequence[RefRow], wants: Sequence[Want], holder: Holder) -> list[LeaseAnswer] | None:
        """Leases on ready snapshots, in one transaction; None when one of them went away this very moment."""
        rows = [self._row(want, holder, revision=ref.revision) for want, ref in zip(wants, refs, strict=True)]

        def open_all(db: sqlite3.Connection) -> list[LeaseRow]:
            opened = []
            for row, ref in zip(rows, refs, strict=True):
                opened.append(row.granted(leases.open_(db, row)))
                snapshots.touch(db, ref.revision, opened[-1].grant)
            source = " ".join(row.source for row in rows)
            journal.request(db, source=source, revision=refs[0].revision, outcome="hit", duration_s=0, uid=holder.peer.uid)
            return opened

        try:
            opened = await self._shelf.index.write_brief(open_all)
        except LookupError:
            return None
        except (Unwritable, InsufficientSpace):
            remembered = self._remember(rows)
            if remembered is None:
                return None
            opened = remembered
        except asyncio.CancelledError:
            # The writer may have opened them by now, or may still: what closes them stands behind that in its queue.
            await asyncio.shield(asyncio.create_task(self.give_up(rows, ())))
            raise
        return self.answers(opened, refs)

    def _remember(self, rows: Sequence[LeaseRow]) -> list[LeaseRow] | None:
        """A full or read-only volume still serves what it holds: its leases live in memory until the index takes them."""
        ready = self._shelf.index.read(lambda db: all(snapshots.is_ready(db, row.revision) for row in rows if row.revision))
        if not ready:
            return None
        newest = self._shelf.index.read(leases.newest_grant) + len(self._shelf.unwritten)
        opened = [row.granted(newest + number) for number, row in enumerate(rows, start=1)]
        self._shelf.unwritten.update({row.id: row for row in opened})
        return opened

    async def catch_up(self) -> None:
        """What could not be written into the index is, as soon as it can be."""
        if self._shelf.unwritten or self._ended:
            rows, ended = [*self._shelf.unwritten.values()], [*self._ended]

            def change(db: sqlite3.Connection) -> None:
                leases.enter(db, rows)
                leases.close(db, ended)

            await self._shelf.index.write(change)
            self._ended.difference_update(ended)
            for row in rows:
                if self._shelf.unwritten.pop(row.id, None) is None:
                    self._ended.add(row.id)  # released meanwhile

    def rows(
        self,
        wants: Sequence[Want],
        refs: Sequence[RefRow | None],
        resolutions: Mapping[str, Resolution],
        holder: Holder,
    ) -> list[LeaseRow]:
        """Leases to `hold`, each on a ready revision or on the resolution that will become one; `give_up` knows their ids."""
        return [
            self._row(want, holder, revision=ref.revision)
            if ref
            else self._row(want, holder, resolution=resolutions[want.key].id)
            for want, ref in zip(wants, refs, strict=True)
        ]

    async def hold(self, rows: Sequence[LeaseRow], resolutions: Mapping[str, Resolution]) -> list[LeaseRow]:
        """One transaction: a lease on everything, ready or still to come, and roots for the blobs that will be needed."""

        def hold(db: sqlite3.Connection) -> list[LeaseRow]:
            for resolution in resolutions.values():
                preparing.open_(db, resolution.id, source=resolution.source, size=resolution.size, files=len(resolution.files))
                preparing.want(db, resolution.id, wanted_digests(resolution))
            return [row.granted(leases.open_(db, row)) for row in rows]

        try:
            return await self._shelf.index.write(hold)
        except LookupError as gone:
            raise Evicted(f"{gone} was evicted at this very moment") from gone

    async def settle(self, opened: Sequence[LeaseRow]) -> None:
        """Every lease is bound to its revision: most were when it was committed, a late joiner's is now."""

        def settle(db: sqlite3.Connection) -> None:
            for row in opened:
                if row.revision is None or not snapshots.is_ready(db, row.revision):
                    raise LookupError(row.revision)
                leases.bind_one(db, row.id, row.revision)
                snapshots.touch(db, row.revision, row.grant)

        try:
            await self._shelf.index.write(settle)
        except LookupError as gone:
            raise Evicted(f"{gone} was evicted at this very moment") from gone

    async def give_up(self, rows: Sequence[LeaseRow], idle: Iterable[Resolution]) -> None:
        """The acquire failed: its leases are taken back, and the resolutions that nobody else counts on."""

        def close(db: sqlite3.Connection) -> None:
            leases.close(db, [row.id for row in rows])
            for resolution in idle:
                preparing.fail(db, resolution.id, "given_up")

        await self._shelf.index.write(close)

    def answers(
        self, rows: Sequence[LeaseRow], refs: Sequence[RefRow], seconds: Mapping[str, float] = MappingProxyType({})
    ) -> list[LeaseAnswer]:
        """From here on the leases run. `seconds` says how long each phase of a miss took."""
        now = time.monotonic()
        for row in rows:
            self._book.enter(row, now)
        return [
            LeaseAnswer(
                id=row.id,
                grant=row.grant,
                source=row.source,
                revision=ref.revision,
                path=_path_of(ref),
                kind=ref.kind,
                files=self._manifest(ref.revision),
                skipped=ref.skipped,
                expires_s=row.ttl_s,
                store=self._shelf.layout.root,
                phases=seconds,
            )
            for row, ref in zip(rows, refs, strict=True)
        ]

    def _manifest(self, revision: Revision) -> Manifest:
        """Content-named, so a kept one is never stale."""
        tree = self._manifests.get(revision)
        if tree is None:
            tree = self._manifests[revision] = self._shelf.index.read(lambda db: snapshots.manifest(db, revision))
            if len(self._manifests) > KEPT_MANIFESTS:
                self._manifests.popitem(last=False)
        else:
            self._manifests.move_to_end(revision)
        return tree

    async def renew(self, request: RenewRequest, peer: Peer) -> list[str]:
        """The ids kept. Anything else of this client's up to `seen` is void at once."""
        kept, void = self._book.renew(
            uid=peer.uid, client=request.client, ids=request.ids, seen=request.seen, now=time.monotonic()
        )

        def change(db: sqlite3.Connection) -> None:
            leases.renew(db, kept)
            leases.close(db, void)

        try:
            await self._shelf.index.write_brief(change)
        except (Unwritable, InsufficientSpace):
            self._forget_later(void)
        self._shelf.metrics.leases.set(len(self._book))
        if void:
            self._shelf.room_bell.ring()
        return kept

    async def release(self, id_: str, peer: Peer) -> None:
        """Raises NotFound or AccessDenied."""
        self._book.release(id_, uid=peer.uid)
        await self._end([id_])

    async def take_back(self, ids: Sequence[str]) -> None:
        """Leases whose answer could not be delivered: nobody knows of them."""
        self._book.discard(ids)
        await self._end(ids)

    def client_gone(self, *, uid: int, client: str) -> None:
        """EOF on the connection that carried the renewals."""
        self._book.shorten(uid=uid, client=client, now=time.monotonic())

    def forgive(self, gap_s: float) -> None:
        self._book.forgive(gap_s)

    async def expire(self) -> None:
        if ended := self._book.expire(time.monotonic()):
            await self._end(ended)

    def _forget_later(self, ids: Iterable[str]) -> None:
        """The book knows already that they are over; the index hears of it when it can be written again."""
        self._ended.update(ids)
        for id_ in ids:
            self._shelf.unwritten.pop(id_, None)

    async def _end(self, ids: Sequence[str]) -> None:
        try:
            await self._shelf.index.write_brief(lambda db: leases.close(db, ids))
        except (Unwritable, InsufficientSpace):
            self._forget_later(ids)
        for id_ in ids:
            self._shelf.unwritten.pop(id_, None)
        self._shelf.metrics.leases.set(len(self._book))
        self._shelf.room_bell.ring()


def _path_of(ref: RefRow) -> str:
    """Relative to the store; what a bundle's path leads to stays, also when its name comes to stand for another."""
    if ref.kind != "bundle":
        return trees.path_of(ref.revision)
    return bundles.path_of(BundleName.parse(Source.parse(ref.source).path), ref.revision)
