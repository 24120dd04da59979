"""Acquire: leases on all the sources asked for, or on none.

A hit is one index read, one lease row and no network. A miss holds before it fetches: its leases and reservations are in
the index before the first byte comes, and are taken back if it fails.
"""

from __future__ import annotations

import asyncio
import math
import sqlite3
import time
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

from hotshelf_daemon.acquire.bundles import Bundles, is_bundle
from hotshelf_daemon.acquire.freshness import Freshness
from hotshelf_daemon.acquire.gauge import Gauge
from hotshelf_daemon.acquire.leasing import Evicted, Holder, Leasing, Peer
from hotshelf_daemon.acquire.names import Names, Want
from hotshelf_daemon.acquire.pipelines import Pipelines, is_pipeline
from hotshelf_daemon.acquire.prepare import Preparer
from hotshelf_daemon.flights import first_failure
from hotshelf_daemon.index import journal, leases, snapshots
from hotshelf_daemon.index.leases import LeaseRow
from hotshelf_daemon.index.snapshots import RefRow
from hotshelf_daemon.origin import Changed
from hotshelf_daemon.plan import Resolution
from hotshelf_daemon.provenance import Unvouched
from hotshelf_daemon.shelf import Shelf
from hotshelf_daemon.store import trees
from hotshelf_shared.errors import HotshelfError, InsufficientSpace, IntegrityError, Timeout
from hotshelf_shared.manifest import Manifest
from hotshelf_shared.wire import AcquireRequest, LeaseAnswer


class Desk:
    def __init__(
        self,
        shelf: Shelf,
        names: Names,
        preparer: Preparer,
        freshness: Freshness,
        leasing: Leasing,
        *,
        pipelines: Pipelines,
        bundles: Bundles,
    ) -> None:
        self._shelf = shelf
        self._pipelines, self._bundles = pipelines, bundles
        self._leasing = leasing
        self._names = names
        self._preparer = preparer
        self._freshness = freshness
        #: Held while an acquire takes what it needs: what one holds for a moment and in vain is no reason to refuse another.
        self._taking = asyncio.Lock()

    async def acquire(self, request: AcquireRequest, peer: Peer, gauge: Gauge) -> list[LeaseAnswer]:
        """Leases on all the wishes, or a HotshelfError and nothing held."""
        began = time.monotonic()
        sources = " ".join(str(wish.source) for wish in request.wishes)
        outcome, error = "miss", None
        answers: list[LeaseAnswer] = []
        try:
            wants, holder = [self._names.want(wish) for wish in request.wishes], Holder.of(request, peer)
            await self._bundles.admit(wants, uid=peer.uid)
            hit = await self._hit(wants, holder)
            if hit is not None:
                outcome, answers = "hit", hit
                return answers
            try:
                async with asyncio.timeout(request.timeout_s):
                    outcome, answers = await self._miss(wants, holder, gauge)
            except TimeoutError as late:
                if gauge.phase == "queue" and gauge.refusal is not None:
                    raise gauge.refusal from late
                done = gauge.progress()
                raise Timeout(
                    f"{sources} was not ready within {request.timeout_s:g} s"
                    f" ({done.bytes_done:,} of {done.bytes_total:,} bytes are here)"
                ) from late
            return answers
        except HotshelfError as failure:
            outcome, error = "error", failure.code
            if isinstance(failure, IntegrityError):
                self._shelf.metrics.verify_failures.labels(_reason(failure)).inc()
            raise
        except asyncio.CancelledError:
            outcome, error = "error", "client_gone"
            raise
        finally:
            duration = time.monotonic() - began
            self._shelf.metrics.acquired(outcome, duration)
            self._shelf.metrics.leases.set(len(self._leasing))
            if outcome != "hit":  # a hit's request row went with its lease
                revision = answers[0].revision if answers else None
                row = self._shelf.index.write(
                    lambda db: journal.request(
                        db, source=sources, revision=revision, outcome=outcome, duration_s=duration, uid=peer.uid, error=error
                    )
                )
                try:
                    await asyncio.shield(asyncio.create_task(row))
                except asyncio.CancelledError:  # gone at the very last moment: nobody will hear of these leases
                    await asyncio.shield(asyncio.create_task(self._leasing.take_back([answer.id for answer in answers])))
                    raise

    async def resolve(self, request: AcquireRequest, peer: Peer) -> list[tuple[str, str, bool, Manifest | None]]:
        """What each wish stands for, with nothing fetched for it: source, kind, whether it is held, and its files.

        None for files whose digests nobody knows before they are read. Raises what `acquire` does.
        """
        wants = [self._names.want(wish) for wish in request.wishes]
        await self._pipelines.admit(wants, uid=peer.uid)
        await self._bundles.admit(wants, uid=peer.uid)
        refs = self._held(wants, peer.uid)
        async with asyncio.timeout(request.timeout_s):
            cold = await self._resolve([want for want, ref in zip(wants, refs, strict=True) if ref is None])
        found: list[tuple[str, str, bool, Manifest | None]] = []
        for wish, want, ref in zip(request.wishes, wants, refs, strict=True):
            if ref is not None:
                tree = self._shelf.index.read(lambda db: snapshots.manifest(db, ref.revision))  # noqa: B023 - run at once
                found.append((str(wish.source), ref.kind, True, tree))
            else:
                resolution = cold[want.key]
                found.append((str(wish.source), resolution.kind, False, resolution.promised))
        return found

    async def _hit(self, wants: Sequence[Want], holder: Holder) -> list[LeaseAnswer] | None:
        refs = [ref for ref in self._held(wants, holder.peer.uid) if ref is not None]
        if len(refs) < len(wants):
            return None
        granted = await self._leasing.grant(refs, wants, holder)
        if granted is not None:
            for want in wants:
                self._freshness.hit(want)
        return granted

    async def _miss(self, wants: Sequence[Want], holder: Holder, gauge: Gauge) -> tuple[str, list[LeaseAnswer]]:
        """Restarts once when the origin changes meanwhile: then everything is resolved anew.

        While others hold the room it waits, and holds nothing itself: two who wait cannot wait for each other.
        """
        known: dict[str, Resolution] = {}
        changes = 0
        while True:
            room = self._shelf.room_bell.next()
            try:
                return await self._join(wants, holder, gauge, known)
            except Changed as change:
                changes += not isinstance(change, Evicted)
                if changes > 1:
                    raise
                known.clear()
                gauge.enter("resolve")
            except InsufficientSpace as refusal:
                if refusal is not gauge.refusal or not (await self._may_end(refusal, holder) or room.is_set()):
                    raise
                gauge.enter("queue")
                await room.wait()

    async def _may_end(self, refusal: InsufficientSpace, holder: Holder) -> bool:
        """Whether there would be room if all others let go of what is not pinned: who asks may well be waiting for himself."""
        look = partial(leases.passing_bytes, client=holder.client, ingests=sorted(self._preparer.busy()))
        return bool(refusal.details.get("lacking_bytes", math.inf) <= await self._shelf.index.look(look))

    async def _join(
        self, wants: Sequence[Want], holder: Holder, gauge: Gauge, known: dict[str, Resolution]
    ) -> tuple[str, list[LeaseAnswer]]:
        """`known` has what was resolved before, and gets what is resolved now."""
        refs = self._held(wants, holder.peer.uid)
        cold = [want for want, ref in zip(wants, refs, strict=True) if ref is None]
        with self._preparer.at_work(cold) as joined:
            await self._pipelines.admit(cold, uid=holder.peer.uid)
            known.update(await self._resolve([want for want in cold if want.key not in known]))
            resolutions = {want.key: known[want.key] for want in cold}
            return "coalesced" if joined else "miss", await self._fetch(wants, refs, resolutions, holder, gauge)

    def _held(self, wants: Iterable[Want], uid: int) -> list[RefRow | None]:
        """The ref of each want whose snapshot is ready, and which this uid may have, else None."""
        layout = self._shelf.layout
        refs = self._shelf.index.read(lambda db: [self._ready(db, want, uid) for want in wants])
        # One lstat a hit: a directory that somebody removed by hand is a miss, and is laid out anew.
        return [
            ref if ref is not None and (ref.kind == "bundle" or trees.is_there(layout, ref.revision)) else None for ref in refs
        ]

    def _ready(self, db: sqlite3.Connection, want: Want, uid: int) -> RefRow | None:
        if is_bundle(want):
            return self._bundles.ref(db, want, uid=uid)
        ref = snapshots.ready_ref(db, want.key)
        if ref is None and (unpinned := self._names.unpinned(want)) is not None:
            # What the unpinned source stands for now is this very revision: nothing to ask the origin for.
            ref = snapshots.ready_ref(db, unpinned.key)
            ref = ref if ref is not None and ref.revision == want.source.pinned else None
        if ref is not None and is_pipeline(want) and not self._pipelines.answers(db, want, ref, uid=uid):
            return None
        if ref is not None and not self._preparer.accepts(want, ref):
            return None
        return ref

    async def _fetch(
        self,
        wants: Sequence[Want],
        refs: Sequence[RefRow | None],
        resolutions: dict[str, Resolution],
        holder: Holder,
        gauge: Gauge,
    ) -> list[LeaseAnswer]:
        rows, promised = await self._take(wants, refs, resolutions, holder, gauge)
        try:
            settled = await self._bring(wants, refs, resolutions, gauge, promised)
            self._pipelines.check(wants, settled, uid=holder.peer.uid)
            opened = [replace(row, revision=ref.revision, resolution=None) for row, ref in zip(rows, settled, strict=True)]
            await self._leasing.settle(opened)
        except BaseException:
            await self._give_up(rows, resolutions)
            self._shelf.room_bell.ring()
            raise
        for want, ref in zip(wants, refs, strict=True):
            (self._freshness.fetched if ref is None else self._freshness.hit)(want)
        gauge.enter("ready")
        return self._leasing.answers(opened, settled, gauge.seconds)

    async def _take(
        self,
        wants: Sequence[Want],
        refs: Sequence[RefRow | None],
        resolutions: dict[str, Resolution],
        holder: Holder,
        gauge: Gauge,
    ) -> tuple[list[LeaseRow], list[str]]:
        """Leases on all of it and room for what is missing, or neither. Raises InsufficientSpace, which `gauge` is told."""
        rows = self._leasing.rows(wants, refs, resolutions, holder)
        try:
            # What is all here takes no room, and waits for nobody.
            async with self._taking if self._preparer.missing(resolutions.values()) else nullcontext():
                try:
                    rows = await self._leasing.hold(rows, resolutions)
                    return rows, await self._preparer.reserve(list(resolutions.values()), evict=True)
                except InsufficientSpace as refusal:
                    gauge.refusal = refusal
                    await self._give_up(rows, resolutions)
                    raise
        except BaseException as error:
            if error is not gauge.refusal:
                await self._give_up(rows, resolutions)
            raise

    async def _give_up(self, rows: Sequence[LeaseRow], resolutions: dict[str, Resolution]) -> None:
        idle = [resolution for resolution in resolutions.values() if self._preparer.is_alone(resolution)]
        await asyncio.shield(asyncio.create_task(self._leasing.give_up(rows, idle)))

    async def _bring(
        self,
        wants: Sequence[Want],
        refs: Sequence[RefRow | None],
        resolutions: dict[str, Resolution],
        gauge: Gauge,
        promised: list[str],
    ) -> list[RefRow]:
        """The bytes, for which there is room; the ref of each want."""
        try:
            self._preparer.gauge(gauge, self._preparer.missing(resolutions.values()))
            gauge.held_bytes = sum(r.size for r in resolutions.values()) - sum(m.size for m in gauge.meters)
            ready = await self._prepare_all(wants, resolutions, gauge)
        finally:
            await asyncio.shield(asyncio.create_task(self._preparer.unclaim(promised)))
        return [ready[want.key] if ref is None else ref for want, ref in zip(wants, refs, strict=True)]

    async def _resolve(self, wants: Iterable[Want]) -> dict[str, Resolution]:
        distinct = {want.key: want for want in wants}
        try:
            async with asyncio.TaskGroup() as group:
                tasks = {key: group.create_task(self._preparer.resolve(want)) for key, want in distinct.items()}
        except BaseExceptionGroup as failures:
            raise first_failure(failures) from failures
        return {key: task.result() for key, task in tasks.items()}

    async def _prepare_all(self, wants: Sequence[Want], resolutions: dict[str, Resolution], gauge: Gauge) -> dict[str, RefRow]:
        distinct = {want.key: want for want in wants if want.key in resolutions}
        try:
            async with asyncio.TaskGroup() as group:
                tasks = {
                    key: group.create_task(self._preparer.prepare(want, resolutions[key], gauge, prefetch=False))
                    for key, want in distinct.items()
                }
        except BaseExceptionGroup as failures:
            raise first_failure(failures) from failures
        return {key: task.result() for key, task in tasks.items()}


def _reason(failure: IntegrityError) -> str:
    return "changed" if isinstance(failure, Changed) else "signature" if isinstance(failure, Unvouched) else "content"
