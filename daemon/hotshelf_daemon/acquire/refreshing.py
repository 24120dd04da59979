"""Refresh: a source's origin is asked now, what has changed is fetched for whoever waits, and then it flips.

It ends a rollback, in one transaction with the flips, once everything is here: until then, and when it fails, the source stays
as it was. One at a time for each source, shared by all who ask at once.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Sequence
from typing import Any

from hotshelf_daemon import views
from hotshelf_daemon.acquire.bringing import Resolved, bring
from hotshelf_daemon.acquire.gauge import Gauge
from hotshelf_daemon.acquire.names import Names, Want
from hotshelf_daemon.acquire.prepare import Preparer
from hotshelf_daemon.acquire.turning import turnable
from hotshelf_daemon.flights import Flights, first_failure
from hotshelf_daemon.index import journal, rollbacks, snapshots
from hotshelf_daemon.index.snapshots import RefRow
from hotshelf_daemon.origin import Changed
from hotshelf_daemon.shelf import Shelf
from hotshelf_daemon.store import trees
from hotshelf_shared.errors import AccessDenied, Conflict, NotFound, Timeout

log = logging.getLogger(__name__)


class Refreshing:
    def __init__(self, shelf: Shelf, names: Names, preparer: Preparer) -> None:
        self._shelf = shelf
        self._names = names
        self._preparer = preparer
        self._flights: Flights[dict[str, Any]] = Flights()

    async def refresh(self, text: str, gauge: Gauge, *, timeout_s: float, is_admin: bool) -> dict[str, Any]:
        """What the source stands for now and before, and what ended.

        Raises what its origin does, and what an acquire does; AccessDenied for a frozen source unless `is_admin`.
        """
        want = turnable(self._names, text)
        if want.source.pinned is not None:
            return {**_told(want, want.source.pinned, want.source.pinned), "pinned": True}
        wants, at = self._wants(want), self._rolled_back_at(want)
        if not is_admin and (at is not None or any(one.frozen for one in wants)):
            raise AccessDenied(
                f"{want.source} is {'rolled back' if at is not None else 'frozen'}", hint="Only `admin_uids` may refresh it."
            )
        try:
            async with asyncio.timeout(timeout_s):
                return await self._flights.join((str(want.source), at), lambda: self._refresh(want, wants, at, gauge))
        except TimeoutError as late:
            raise Timeout(f"{want.source} was not refreshed within {timeout_s:g} s") from late

    def _wants(self, want: Want) -> list[Want]:
        """What of the source is held, under all patterns; the want itself when nothing is."""
        refs = self._shelf.index.read(lambda db: snapshots.refs(db, str(want.source)))
        return [one for ref in refs if (one := self._names.of_ref(ref)) is not None] or [want]

    def _rolled_back_at(self, want: Want) -> float | None:
        return self._shelf.index.read(lambda db: rollbacks.moment(db, str(want.source)))

    async def _refresh(self, want: Want, wants: list[Want], at: float | None, gauge: Gauge) -> dict[str, Any]:
        before = {one.key: self._shelf.index.read(lambda db: snapshots.ref(db, one.key)) for one in wants}  # noqa: B023 - at once
        try:
            changed = await self._bring(wants, gauge)
        except Changed:  # while it was fetched: once more, as an acquire does
            if self._rolled_back_at(want) != at:
                raise Conflict(f"{want.source} was rolled back while it was refreshed", hint="Refresh it again.") from None
            changed = await self._bring(wants, gauge)
        gauge.enter("commit")
        async with self._shelf.hand:
            if self._rolled_back_at(want) != at:
                raise Conflict(f"{want.source} was rolled back while it was refreshed", hint="Refresh it again.")
            if not self._shelf.index.read(lambda db: all(snapshots.is_ready(db, ref.revision) for ref in changed.values())):
                raise Changed(f"what {want.source} has become was evicted at this very moment")
            await self._shelf.hand.finish(self._settle(want, wants, changed, before, unfreeze=at is not None))
        lead = want.key if want.key in before else wants[0].key
        now = {one.key: ref.revision for one in wants if (ref := changed.get(one.key) or before[one.key]) is not None}
        was = before[lead]
        return {
            **_told(want, now[lead], None if was is None else was.revision),
            "changed": any(old is None or old.revision != now[key] for key, old in before.items()),
            "unfrozen": at is not None,
        }

    async def _bring(self, wants: Sequence[Want], gauge: Gauge) -> dict[str, RefRow]:
        """The refs of wants that are not what their origin has, by wish: ready."""
        gauge.enter("resolve")
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._resolve(want)) for want in wants]
        except BaseExceptionGroup as failures:
            raise first_failure(failures) from failures
        resolved = [found for task in tasks if not isinstance(found := task.result(), NotFound)]
        if not resolved:
            raise next(found for task in tasks if isinstance(found := task.result(), NotFound))
        stale = [one for one in resolved if not self._is_current(one)]
        refs = await bring(self._shelf, self._preparer, stale, gauge, prefetch=False)
        return {ref.wish: ref for ref in refs}

    async def _resolve(self, want: Want) -> Resolved | NotFound:
        """A selection of which the origin has nothing any more stays what it was, as long as it has others."""
        try:
            return want, await self._preparer.resolve_anew(want)
        except NotFound as error:
            return error

    def _is_current(self, resolved: Resolved) -> bool:
        want, resolution = resolved
        ref = self._shelf.index.read(lambda db: snapshots.ready_ref(db, want.key))
        return ref is not None and ref.listing == resolution.id and self._preparer.accepts(want, ref)

    async def _settle(
        self,
        want: Want,
        wants: Sequence[Want],
        changed: dict[str, RefRow],
        before: dict[str, RefRow | None],
        *,
        unfreeze: bool,
    ) -> None:
        source = str(want.source)

        def change(db: sqlite3.Connection) -> None:
            for one in wants:
                old, new = before[one.key], changed.get(one.key)
                if new is None:
                    snapshots.mark_checked(db, one.key)
                    continue
                if unfreeze:
                    snapshots.flip(db, new)
                    if old is not None and old.revision != new.revision:
                        journal.event(db, "flipped", source, str(new.revision))
                snapshots.freshen(db, new.revision)
            if unfreeze:
                rollbacks.drop(db, source)
                journal.event(db, "unfrozen", source, "refreshed")

        def record() -> None:
            for ref in changed.values():
                trees.write_json(self._shelf.layout, "refs", ref.wish, ref.to_json())
            trees.drop_record(self._shelf.layout, "refs", f"{trees.rollback_record(source)}.json", synced=True)

        if unfreeze:
            await asyncio.to_thread(record)
        await self._shelf.index.write(change, durable=True)
        await views.show(self._shelf, [*changed.values()])
        log.info("refreshed", extra={"source": source, "changed": len(changed), "unfrozen": unfreeze})


def _told(want: Want, revision: str, previous: str | None) -> dict[str, Any]:
    return {
        "source": str(want.source),
        "revision": revision,
        "previous": previous,
        "changed": revision != previous,
        "unfrozen": False,
        "pinned": False,
    }
