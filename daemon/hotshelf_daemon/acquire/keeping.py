"""The operator's verbs: what is held, pins, evict, verify, collect. Admin rights are checked at the edge."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from hotshelf_daemon import collect
from hotshelf_daemon.acquire.aging import PREVIOUS, aged, standing
from hotshelf_daemon.acquire.condemning import condemn
from hotshelf_daemon.acquire.names import Names
from hotshelf_daemon.acquire.prepare import Preparer
from hotshelf_daemon.index import blobs, bundles, leases, pipelines, rollbacks, snapshots
from hotshelf_daemon.index.leases import PinRow
from hotshelf_daemon.shelf import Shelf
from hotshelf_daemon.store import blobs as files
from hotshelf_daemon.store import trees
from hotshelf_shared.digest import Digest, Revision
from hotshelf_shared.errors import NotFound
from hotshelf_shared.source import Source
from hotshelf_shared.wire import Wish

_SNAPSHOT = (
    "SELECT revision, path, bytes AS size, files, state, created_at, last_used_at, uses, leases, pinned FROM v_snapshots"
)


class Keeping:
    def __init__(self, shelf: Shelf, names: Names, preparer: Preparer) -> None:
        self._shelf = shelf
        self._names = names
        self._preparer = preparer

    async def snapshots(self) -> list[dict[str, Any]]:
        """Every snapshot, the most recently used first, with the names that stand for it."""

        def look(db: sqlite3.Connection) -> list[dict[str, Any]]:
            standings = self._standings(db)
            return [
                {**row, "pinned": bool(row["pinned"]), **standings.get(row["revision"], standing([]))}
                for row in map(dict, db.execute(f"{_SNAPSHOT} ORDER BY last_used_at DESC, revision"))
            ]

        return await self._shelf.index.look(look)

    def _standings(self, db: sqlite3.Connection, revision: Revision | None = None) -> dict[str, dict[str, Any]]:
        """What each revision (or the one) is to its sources: by the refs that name it, the newest first, or named it before."""
        refs, held_back = snapshots.refs(db), {row.source for row in rollbacks.everything(db)}
        revalidate_s, now = self._shelf.settings.revalidate_s, time.time()
        before: dict[str, dict[str, Any]] = {ref.previous: standing([], PREVIOUS) for ref in refs if ref.previous is not None}
        named: dict[str, list[dict[str, Any]]] = {}
        for ref in refs:
            if revision in (None, ref.revision):
                want, rolled_back = self._names.of_ref(ref), ref.source in held_back
                told = aged(ref, want, rolled_back=rolled_back, revalidate_s=revalidate_s, now=now)
                named.setdefault(ref.revision, []).append(told)
        return before | {one: standing(told) for one, told in named.items()}

    def revision_of(self, target: str) -> Revision:
        """The revision that a revision, source or name stands for. Raises NotFound, InvalidRequest."""
        if target.startswith("sha256:"):
            return Revision.parse(target)
        wish = Wish(Source.parse(target))
        want = self._names.want(wish)
        ref = self._shelf.index.read(lambda db: snapshots.ref(db, want.key))
        if ref is None:  # acquired with other patterns than the name has by itself: the newest of them
            ref = next(iter(self._shelf.index.read(lambda db: snapshots.refs(db, str(want.source)))), None)
        if ref is None:
            raise NotFound(f"nothing of {target!r} is held")
        return ref.revision

    def show(self, target: str) -> dict[str, Any]:
        revision = self.revision_of(target)

        def look(db: sqlite3.Connection) -> dict[str, Any] | None:
            row = db.execute(f"{_SNAPSHOT} WHERE revision = ?", (revision,)).fetchone()
            if row is None:
                return None
            refs = [ref for ref in snapshots.refs(db) if ref.revision == revision]
            tree = snapshots.manifest(db, revision)
            return {
                **dict(row),
                "pinned": bool(row["pinned"]),
                **self._standings(db, revision).get(revision, standing([])),
                "signed_by": sorted({ref.signed_by for ref in refs if ref.signed_by is not None}),
                "pipelines": [pipelines.shown(db, key) for key in pipelines.of_revision(db, revision)],
                "bundles": bundles.of_revision(db, revision),
                "skipped": [{"path": s.path, "reason": s.reason} for s in (refs[0].skipped if refs else ())],
                "manifest": [{"path": path, "digest": e.digest, "size": e.size} for path, e in tree.items()],
            }

        found = self._shelf.index.read(look)
        if found is None:
            raise NotFound(f"{revision} is not held")
        return found

    async def evict(self, target: str) -> dict[str, Any]:
        """Raises NotFound, or InUse while something holds it."""
        revision = self.revision_of(target)
        if not self._shelf.index.read(
            lambda db: db.execute("SELECT 1 FROM snapshots WHERE revision = ?", (revision,)).fetchone()
        ):
            raise NotFound(f"{revision} is not held")
        freed = await collect.evict(self._shelf, revision, reason="asked")
        return {"revision": revision, "freed_bytes": freed}

    # ---- pins

    def pins(self) -> list[dict[str, Any]]:
        rows = self._shelf.index.read(lambda db: db.execute("SELECT * FROM v_pins ORDER BY target").fetchall())
        return [dict(row) for row in rows]

    async def pin(self, target: str, *, uid: int, kind: str = "name") -> dict[str, Any]:
        """Holds a revision for good, or whatever a name stands for, now and later. Raises NotFound, InvalidRequest."""
        if target.startswith("sha256:"):
            revision = Revision.parse(target)
            if not self._shelf.index.read(lambda db: snapshots.is_ready(db, revision)):
                raise NotFound(f"{revision} is not held", hint="Acquire it first, then pin it.")
            row = PinRow(revision, "revision", None, uid, time.time())
        else:
            want = self._names.want(Wish(Source.parse(target)))
            row = PinRow(str(Source.parse(target)), kind, want.key, uid, time.time())
        body = {"target": row.target, "kind": row.kind, "wish": row.wish, "uid": row.uid, "created_at": row.created_at}
        await asyncio.to_thread(trees.write_json, self._shelf.layout, "pins", _pin_record(row.target), body)
        await self._shelf.index.write(lambda db: leases.pin(db, row), durable=True)
        self._count_pins()
        return next(shown for shown in self.pins() if shown["target"] == row.target)

    async def unpin(self, target: str) -> None:
        """Raises NotFound when there is no such pin."""
        canonical = str(Source.parse(target)) if not target.startswith("sha256:") else target
        if not await self._shelf.index.write(lambda db: leases.unpin(db, canonical), durable=True):
            raise NotFound(f"{target!r} is not pinned")
        await asyncio.to_thread(trees.drop_record, self._shelf.layout, "pins", f"{_pin_record(canonical)}.json")
        self._count_pins()
        self._shelf.room_bell.ring()

    async def pin_configured(self, wanted: Iterable[str]) -> None:
        """Makes the pins that the configuration asks for, and ends those that it no longer does."""
        names = set(wanted)
        for row in self._shelf.index.read(leases.pins):
            if row.kind == "configured" and row.target not in names:
                await self.unpin(row.target)
        for name in sorted(names):
            await self.pin(name, uid=os.getuid(), kind="configured")

    def _count_pins(self) -> None:
        self._shelf.metrics.pins.set(len(self._shelf.index.read(leases.pins)))

    # ---- checking and cleaning

    async def verify(self, target: str | None = None) -> dict[str, Any]:
        """Re-hashes what is held; wrong blobs go to quarantine and their snapshots are damaged: the next acquire heals them."""
        if target is None:
            wanted = self._shelf.index.read(blobs.everything)
        else:
            revision = self.revision_of(target)
            wanted = self._shelf.index.read(lambda db: snapshots.manifest(db, revision)).blobs()
            if not wanted:
                raise NotFound(f"{revision} is not held")
        with ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="verify") as threads:
            loop = asyncio.get_running_loop()
            checks = [loop.run_in_executor(threads, files.is_right, self._shelf.layout, digest) for digest in wanted]
            right = await asyncio.gather(*checks)
        wrong = [digest for digest, ok in zip(wanted, right, strict=True) if not ok]
        damaged = await condemn(self._shelf, wrong, "wrong bytes") if wrong else []
        good = [digest for digest, ok in zip(wanted, right, strict=True) if ok]
        await self._shelf.index.write(lambda db: blobs.mark_verified(db, good))
        return {"checked": len(wanted), "bytes": sum(wanted.values()), "wrong": wrong, "damaged": damaged}

    async def collect(self, *, dry_run: bool) -> dict[str, Any]:
        chosen = await collect.collect(self._shelf, active=self._preparer.busy, dry_run=dry_run)
        return {"dry_run": dry_run, "blobs": list(chosen.blobs), "ingests": list(chosen.ingests), "freed_bytes": chosen.freed}


def _pin_record(target: str) -> str:
    return Digest.of(target.encode()).hex
