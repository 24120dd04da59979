"""Why a source is here, or is not: everything that the index knows of it, and one sentence. Asks no origin."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Mapping, Sequence
from typing import Any

from hotshelf_daemon.acquire.aging import aged
from hotshelf_daemon.acquire.names import Names
from hotshelf_daemon.index import rollbacks, snapshots
from hotshelf_daemon.shelf import Shelf
from hotshelf_shared.source import Source
from hotshelf_shared.wire import Wish

#: How many of the last acquires are told.
LAST_REQUESTS = 5
_REVISIONS = "(SELECT revision FROM refs WHERE source = :source)"
_OF_SNAPSHOT = ("state", "reason", "bytes", "files", "uses", "created_at", "last_used_at", "path")
#: An acquire of several sources is one request, with all that they were called.
_OF_SOURCE = "EXISTS (SELECT 1 FROM json_each(:names) n WHERE instr(' ' || source || ' ', ' ' || n.value || ' '))"
#: Whose revision a request has.
_OF_FIRST = "EXISTS (SELECT 1 FROM json_each(:names) n WHERE instr(source || ' ', n.value || ' ') = 1)"


class Explaining:
    def __init__(self, shelf: Shelf, names: Names) -> None:
        self._shelf, self._names = shelf, names

    async def why(self, target: str) -> dict[str, Any]:
        """Of a source or a configured name. Raises InvalidRequest, and NotFound for a name that nobody configured."""
        source = str(self._names.want(Wish(Source.parse(target))).source)
        names = [source, *(name for name, want in self._names.configured().items() if str(want.source) == source)]
        facts = await self._shelf.index.look(lambda db: self._facts(db, source, names))
        return {"source": source, "summary": summary(facts), **facts}

    def _facts(self, db: sqlite3.Connection, source: str, names: Sequence[str]) -> dict[str, Any]:
        by = {"source": source, "names": json.dumps(names)}

        def rows(sql: str) -> list[dict[str, Any]]:
            return [dict(row) for row in db.execute(sql, by).fetchall()]

        refs, now = snapshots.refs(db, source), time.time()
        held = {row["revision"]: row for row in rows(f"SELECT * FROM v_snapshots WHERE revision IN {_REVISIONS}")}
        is_rolled_back = rollbacks.moment(db, source) is not None
        revalidate_s = self._shelf.settings.revalidate_s
        return {
            "refs": [
                {
                    **aged(ref, self._names.of_ref(ref), rolled_back=is_rolled_back, revalidate_s=revalidate_s, now=now),
                    "revision": ref.revision,
                    "previous": ref.previous,
                    **{key: held[ref.revision][key] for key in _OF_SNAPSHOT if ref.revision in held},
                }
                for ref in refs
            ],
            "leases": rows(
                "SELECT id, uid, pid, client, revision, resolution, granted_at, renewed_at FROM v_leases"
                f" WHERE source = :source OR revision IN {_REVISIONS} ORDER BY grant_number"
            ),
            "pins": rows(
                "SELECT target, kind, uid, created_at, revision FROM v_pins"
                f" WHERE target = :source OR revision IN {_REVISIONS} ORDER BY target"
            ),
            "preparing": rows(
                "SELECT state, bytes, files, datetime(opened_at, 'unixepoch') AS opened_at, error,"
                " (SELECT coalesce(sum(b.size), 0) FROM wanted_blobs w JOIN blobs b USING (digest)"
                "   WHERE w.resolution = r.id) AS bytes_held FROM resolutions r WHERE source = :source ORDER BY opened_at DESC"
            ),
            "requests": rows(
                f"SELECT at, revision, outcome, duration_s, uid, error FROM v_requests WHERE {_OF_SOURCE}"
                f" ORDER BY id DESC LIMIT {LAST_REQUESTS}"
            ),
            "evictions": rows(
                "SELECT at, revision, bytes, reason FROM v_evictions WHERE revision IN"
                f" (SELECT revision FROM requests WHERE revision IS NOT NULL AND {_OF_FIRST})"
                " ORDER BY id DESC LIMIT 1"
            ),
            "events": rows(
                "SELECT at, kind, detail FROM v_events WHERE subject = :source"
                f" OR subject IN {_REVISIONS} ORDER BY id DESC LIMIT 3"
            ),
        }


def summary(facts: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """What matters most of it, in one sentence. Pure."""
    whole = [ref for ref in facts["refs"] if ref.get("state") == "ready"]
    under_way = [one for one in facts["preparing"] if one["state"] == "preparing"]
    if whole:
        newest = whole[0]
        leases, pins = ([one for one in facts[kind] if one["revision"] == newest["revision"]] for kind in ("leases", "pins"))
        held_by = [f"{len(leases)} leases"] * bool(leases) + ["a pin"] * bool(pins)
        holds = f"held by {' and '.join(held_by)}" if held_by else "held by nobody, so it goes when its room is needed"
        return f"It is here since {newest['created_at']} UTC ({newest['bytes']:,} bytes), {holds}."
    if under_way:
        one = under_way[0]
        return f"It is on its way since {one['opened_at']} UTC: {one['bytes']:,} bytes in {one['files']} files."
    if facts["refs"]:
        hurt = facts["refs"][0]
        state, reason = hurt.get("state", "gone"), hurt.get("reason") or "no reason is known"
        return f"It was here and is {state} ({reason}): the next acquire heals it."
    last, gone = facts["requests"][:1], facts["evictions"][:1]
    if last and last[0]["error"] is not None and (not gone or gone[0]["at"] <= last[0]["at"]):
        return f"It is not here: the last acquire, at {last[0]['at']} UTC, ended with {last[0]['error']}."
    if gone:
        why = "room was needed" if gone[0]["reason"] == "room" else f"the reason was: {gone[0]['reason']}"
        return f"It is not here: it was evicted at {gone[0]['at']} UTC ({gone[0]['bytes']:,} bytes); {why}."
    return "It is not here: as far back as is remembered, nobody has acquired it."
