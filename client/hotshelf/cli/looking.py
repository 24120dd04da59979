"""`hotshelf why`, `du`, `gc`, `verify`: what became of a source, what takes the room, what may go, and whether it is right."""

from __future__ import annotations

from typing import Any

import click

from hotshelf.cli.index import opened
from hotshelf.cli.output import Output, named, short, size, table
from hotshelf.cli.shelf import DRY_RUN
from hotshelf.cli.verb import client, verb
from hotshelf_shared.errors import IntegrityError

#: What leaves when a snapshot does, and what others hold as well: each content once.
_USAGE = """
    WITH contents AS (SELECT DISTINCT revision, digest, size FROM v_files),
         holders AS (SELECT digest, count(*) AS snapshots FROM contents GROUP BY digest)
    SELECT s.revision, s.sources, s.state, s.leases, s.pinned, coalesce(sum(c.size), 0) AS bytes,
           coalesce(sum(CASE WHEN h.snapshots = 1 THEN c.size ELSE 0 END), 0) AS own_bytes
    FROM v_snapshots s LEFT JOIN contents c USING (revision) LEFT JOIN holders h USING (digest)
    GROUP BY s.revision ORDER BY own_bytes DESC, bytes DESC, s.revision
"""


@verb("why", example="hotshelf why sdxl")
@click.argument("source")
def why(out: Output, *, source: str) -> None:
    """Say why SOURCE is on the shelf or is not: since when, who holds it, and what happened to it last. Asks no origin."""
    told = client().why(source)
    human = [
        told["source"],
        told["summary"],
        *_section("revisions", ("revision", "freshness", "state", "uses"), _revisions(told)),
        *_section("leases", ("uid", "pid", "client", "since (UTC)"), _leases(told)),
        *_section("pins", ("target", "kind", "uid"), [(one["target"], one["kind"], one["uid"]) for one in told["pins"]]),
        *_section("last acquires", ("at (UTC)", "outcome", "seconds", "error"), _requests(told)),
        *_section("last eviction", ("at (UTC)", "size", "reason"), _evictions(told)),
        *_section(
            "events", ("at (UTC)", "kind", "detail"), [(one["at"], one["kind"], one["detail"]) for one in told["events"]]
        ),
    ]
    out.result(told, human=human, quiet=[told["summary"]])


def _section(title: str, head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> list[str]:
    return ["", f"{title}:", *(f"  {line}" for line in table(head, rows))] if rows else []


def _revisions(told: dict[str, Any]) -> list[tuple[Any, ...]]:
    return [(short(one["revision"]), one["freshness"], one.get("state", "gone"), one.get("uses", 0)) for one in told["refs"]]


def _leases(told: dict[str, Any]) -> list[tuple[Any, ...]]:
    return [(one["uid"], one["pid"], one["client"] or "-", one["granted_at"]) for one in told["leases"]]


def _requests(told: dict[str, Any]) -> list[tuple[Any, ...]]:
    return [(one["at"], one["outcome"], f"{one['duration_s']:.2f}", one["error"] or "") for one in told["requests"]]


def _evictions(told: dict[str, Any]) -> list[tuple[Any, ...]]:
    return [(one["at"], size(one["bytes"]), one["reason"]) for one in told["evictions"]]


@verb("du", example="hotshelf du --format json")
def du(out: Output) -> None:
    """Say what takes how much room: OWN is what would be free if that snapshot went, the rest of TOTAL others hold as well.

    Read from the index, so it works while the daemon is down.
    """
    with opened() as index:
        cursor = index.execute(_USAGE)
        head = [column[0] for column in cursor.description]
        found = [dict(zip(head, row, strict=True)) for row in cursor]
        (held,) = index.execute("SELECT coalesce(sum(size), 0) FROM v_blobs").fetchone()
        waste = index.execute("SELECT kind, count(*), sum(bytes) FROM v_waste GROUP BY kind ORDER BY kind").fetchall()
    rows = [
        (size(one["own_bytes"]), size(one["bytes"]), one["leases"], bool(one["pinned"]), named((one["sources"] or "").split()))
        for one in found
    ]
    body = {
        "snapshots": found,
        "held_bytes": held,
        "waste": [{"kind": kind, "count": count, "bytes": total} for kind, count, total in waste],
    }
    human = [
        *table(("own", "total", "leases", "pinned", "source"), rows),
        f"{size(held)} in all, each content once",
        *(f"{kind}: {count}, {size(total)}" for kind, count, total in waste),
    ]
    out.result(body, human=human, quiet=[str(held)])


@verb("gc", example="hotshelf gc --dry-run")
@DRY_RUN
def gc(out: Output, *, dry_run: bool) -> None:
    """Remove what no snapshot holds: contents of snapshots that went, and interrupted downloads. Snapshots stay: see evict."""
    done = client().collect(dry_run=dry_run)
    does = "would free" if dry_run else "freed"
    counts = f"{len(done['blobs'])} contents, {len(done['ingests'])} interrupted downloads"
    out.result(done, human=[f"{does} {size(done['freed_bytes'])}: {counts}"], quiet=[str(done["freed_bytes"])])


@verb("verify", example="hotshelf verify sdxl")
@click.argument("source", required=False)
def verify(out: Output, *, source: str | None) -> None:
    """Read and hash SOURCE, or everything that is held. Exit code 4 when something was wrong.

    What is wrong is quarantined and its snapshots are damaged: nobody is given them, and the next acquire fetches it again.
    """
    done = client().verify(source)
    human = [f"{done['checked']} contents, {size(done['bytes'])}: {len(done['wrong'])} wrong"]
    human += [f"  {short(digest)}" for digest in done["wrong"]] + [f"  damaged {revision}" for revision in done["damaged"]]
    out.result(done, human=human, quiet=done["wrong"])
    if done["wrong"]:
        raise IntegrityError(
            f"{len(done['wrong'])} contents were not what they are named by",
            hint="They are in quarantine/ for you to look at; `hotshelf acquire SOURCE` fetches them anew. Look at the disk.",
        )


VERBS = (why, du, gc, verify)
