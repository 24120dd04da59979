"""Rollback: a source goes back to the revision before, with all that was taken of it, and stays there until it is refreshed.

The records from which a lost index is rebuilt are changed first; then one transaction turns every ref, and makes the row that
freezes the source; then somebody is told. What is cut off between is put right by the rows at the next start. A source that was
rolled back goes forth when it is rolled back once more.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
import time
from dataclasses import dataclass
from typing import Any

from hotshelf_daemon import plan, views
from hotshelf_daemon.acquire.names import Names, Want
from hotshelf_daemon.index import journal, rollbacks, snapshots
from hotshelf_daemon.index.rollbacks import RollbackRow
from hotshelf_daemon.index.snapshots import RefRow
from hotshelf_daemon.plan import HeldRef
from hotshelf_daemon.shelf import Shelf
from hotshelf_daemon.store import trees
from hotshelf_shared.errors import HotshelfError, InvalidRequest, NotFound
from hotshelf_shared.source import KEYED, Source
from hotshelf_shared.wire import Wish

log = logging.getLogger(__name__)


def turnable(names: Names, text: str) -> Want:
    """The want of a source or name that may change. Raises InvalidRequest for one that never does, NotFound."""
    if text.startswith("sha256:"):
        raise InvalidRequest("a revision never changes", hint="Name the source that it came from; `hotshelf ls` shows it.")
    want = names.want(Wish(Source.parse(text)))
    if want.source.kind in KEYED:
        raise InvalidRequest(
            f"{want.source} is what was built under that key, and no origin changes it",
            hint="Refresh or roll back what it was built from; `hotshelf evict` takes this one off the shelf.",
        )
    return want


@dataclass(frozen=True, slots=True)
class Turn:
    """A rollback as it is to be, or was, carried out: `lead` first of `turned`, each with what it was before."""

    row: RollbackRow
    turned: tuple[RefRow, ...]
    stay: tuple[RefRow, ...]
    lost: tuple[RefRow, ...]

    def to_json(self) -> dict[str, Any]:
        lead = self.turned[0]
        ways = {"turned": self.turned, "kept": self.stay, "forgotten": self.lost}
        return {
            "source": self.row.source,
            "revision": lead.revision,
            "previous": lead.previous,
            "refs": [_shown(ref, way) for way, refs in ways.items() for ref in refs],
        }


class Turning:
    def __init__(self, shelf: Shelf, names: Names) -> None:
        self._shelf = shelf
        self._names = names

    async def roll_back(self, text: str, *, uid: int, dry_run: bool) -> dict[str, Any]:
        """What became, or would become, of every ref of the source. Raises NotFound when there is nothing to go back to."""
        want = turnable(self._names, text)
        if want.source.pinned is not None:
            raise InvalidRequest(f"{want.source} names its revision", hint=f"Roll back {want.source.unpinned}.")
        async with self._shelf.hand:
            turn = self._shelf.index.read(lambda db: _decide(db, want, uid=uid, now=time.time()))
            if not dry_run:
                await self._shelf.hand.finish(self._carry_out(turn))
        return {"dry_run": dry_run, **turn.to_json()}

    async def _carry_out(self, turn: Turn) -> None:
        lead, row = turn.turned[0], turn.row
        lost = [ref.wish for ref in turn.lost]

        def change(db: sqlite3.Connection) -> None:
            for ref in turn.turned:
                snapshots.flip(db, ref)
                snapshots.freshen(db, ref.revision)
            snapshots.drop_refs(db, lost)
            rollbacks.put(db, row)
            journal.event(db, "rolled_back", row.source, f"from {lead.previous} to {lead.revision}")

        def record() -> None:
            for wish in lost:
                trees.drop_record(self._shelf.layout, "refs", f"{wish}.json", synced=True)
            for ref in turn.turned:
                trees.write_json(self._shelf.layout, "refs", ref.wish, ref.to_json())
            trees.write_json(self._shelf.layout, "refs", trees.rollback_record(row.source), row.to_json())

        def undo() -> None:
            if before is None:
                trees.drop_record(self._shelf.layout, "refs", f"{trees.rollback_record(row.source)}.json")
            else:
                trees.write_json(self._shelf.layout, "refs", trees.rollback_record(row.source), before.to_json())

        before = self._shelf.index.read(lambda db: rollbacks.find(db, row.source))
        try:
            await asyncio.to_thread(record)
            await self._shelf.index.write(change, durable=True)
        except HotshelfError:
            with contextlib.suppress(HotshelfError):  # the next start does it too, unless what the row is of is evicted before
                await asyncio.to_thread(undo)
            raise
        await (views.reconcile(self._shelf) if turn.lost else views.show(self._shelf, turn.turned))
        log.info(
            "rolled back", extra={"source": row.source, "revision": lead.revision, "before": lead.previous, "uid": row.uid}
        )


def _decide(db: sqlite3.Connection, want: Want, *, uid: int, now: float) -> Turn:
    refs = {ref.wish: ref for ref in snapshots.refs(db, str(want.source))}
    way = plan.way_back([_held(db, ref) for ref in refs.values()], want.key)
    if way is None:
        raise _nothing_before(want, list(refs.values()))
    turned = tuple(refs[wish].turned_back(now) for wish in (way.lead, *way.back))
    row = RollbackRow(str(want.source), way.lead, turned[0].revision, turned[0].release, now, uid, turned[0].commit)
    return Turn(row, turned, _these(refs, way.stay), _these(refs, way.lost))


def _these(refs: dict[str, RefRow], wishes: tuple[str, ...]) -> tuple[RefRow, ...]:
    return tuple(refs[wish] for wish in wishes)


def _held(db: sqlite3.Connection, ref: RefRow) -> HeldRef:
    ready = ref.previous is not None and snapshots.is_ready(db, ref.previous)
    return HeldRef(
        wish=ref.wish,
        flipped_at=ref.flipped_at,
        tree=snapshots.manifest(db, ref.revision),
        origin=ref.release or ref.commit,
        before=snapshots.manifest(db, ref.previous) if ready and ref.previous is not None else None,
        origin_before=(ref.before.release or ref.before.commit) if ref.before is not None else None,
        flipped_before=ref.before.flipped_at if ref.before is not None else 0.0,
    )


def _nothing_before(want: Want, refs: list[RefRow]) -> NotFound:
    gone = next((ref for ref in refs if ref.previous is not None), None)
    if gone is None:
        what = "has had no other revision here" if refs else "is not held"
        return NotFound(
            f"{want.source} {what}", hint="There is something to go back to once a change of its origin was fetched."
        )
    release = gone.before.release if gone.before is not None else None
    hint = f"Acquire {want.source}@{release or gone.previous}, if it is still published there."
    return NotFound(f"what {want.source} was before, {gone.previous}, is not held any more", hint=hint)


def _shown(ref: RefRow, way: str) -> dict[str, Any]:
    was = ref.previous if way == "turned" else ref.revision
    return {
        "allow_patterns": ref.allow,
        "ignore_patterns": ref.ignore,
        "revision": None if way == "forgotten" else ref.revision,
        "was": was,
        "way": way,
    }
