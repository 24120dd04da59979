"""What is on the shelf and what may go: `ls`, `show`, `pin`, `unpin`, `evict`."""

from __future__ import annotations

from typing import Any

import click

from hotshelf.cli.output import Output, ago, named, short, size, table
from hotshelf.cli.verb import client, verb
from hotshelf_shared.errors import InUse, NotFound
from hotshelf_shared.source import Source

DRY_RUN = click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")


@verb("ls", example="hotshelf ls --format json")
def ls(out: Output) -> None:
    """List what is on the shelf, the most recently used first.

    AGE is for how long its source has stood for this revision, CHECKED when its origin was last asked. FRESHNESS: fresh or
    stale (checked after the next acquire), immutable, frozen or rolled back (until `hotshelf refresh`), or previous: what
    `hotshelf rollback` goes back to.
    """
    found = client().snapshots()
    rows = [
        (
            named(one.get("sources", ())),
            short(one["revision"]),
            size(one["size"]),
            one["files"],
            one["state"],
            one["leases"],
            one["pinned"],
            ago(one.get("age_s")),
            ago(one.get("checked_s")),
            _freshness(one),
            one["last_used_at"],
        )
        for one in found
    ]
    head = (
        "source",
        "revision",
        "size",
        "files",
        "state",
        "leases",
        "pinned",
        "age",
        "checked",
        "freshness",
        "last used (UTC)",
    )
    out.result({"snapshots": found}, human=table(head, rows), quiet=(one["revision"] for one in found))
    if not found:
        out.note("The shelf is empty: hotshelf acquire SOURCE puts something on it.")


def _freshness(one: dict[str, Any]) -> str:
    words = [ref["freshness"] for ref in one.get("refs", ())] or [one.get("freshness") or ""]
    return ", ".join(dict.fromkeys(words)).replace("_", " ")


@verb("show", example="hotshelf show sdxl")
@click.argument("name")
def show(out: Output, *, name: str) -> None:
    """Show one snapshot: NAME is a revision, a source or a configured name."""
    found = client().snapshot(name)
    held = f"{found['leases']} leases{', pinned' if found['pinned'] else ''}"
    human = [
        f"revision  {found['revision']}",
        f"sources   {', '.join(found.get('sources', ())) or '-'}",
        *(f"signed    with the key {key[:16]}" for key in found.get("signed_by", ())),
        *(f"pipeline  {line}" for one in found.get("pipelines", ()) for line in _of_pipeline(one)),
        *(f"freshness {_freshness(found)}, here for {ago(found.get('age_s'))}" for _ in found.get("refs", ())[:1]),
        f"path      {found['path']}",
        f"state     {found['state']}, {held}",
        f"used      {found['last_used_at']} UTC",
        f"size      {size(found['size'])} in {found['files']} files",
        *(f"left out  {one['path']}: {one['reason']}" for one in found.get("skipped", ())),
        "",
        *table(("size", "digest", "path"), ((one["size"], short(one["digest"]), one["path"]) for one in found["manifest"])),
    ]
    out.result(found, human=human, quiet=[found["revision"]])


def _of_pipeline(one: dict[str, Any]) -> list[str]:
    """What it was built from, and by whom."""
    recipe = one["recipe"]
    loras = [f"{short(digest)} at {scale}" for digest, scale in recipe["loras"]]
    return [
        one["key"],
        f"  base {short(recipe['base'])}, {recipe['dtype'] or 'dtype as it came'}{''.join(f', LoRA {lora}' for lora in loras)}",
        f"  built by uid {one['uid']}, bound {one['created_at']} UTC",
    ]


@verb("pin", example="hotshelf pin sdxl")
@click.argument("source")
def pin(out: Output, *, source: str) -> None:
    """Hold SOURCE on the shelf until it is unpinned.

    A name or source is followed to its new revisions; a revision is held as it is.
    """
    out.result(client().pin(source), human=[f"pinned {source}"])


@verb("unpin", example="hotshelf unpin sdxl")
@click.argument("source")
@DRY_RUN
def unpin(out: Output, *, source: str, dry_run: bool) -> None:
    """Let go of a pin; what it held stays until the room is needed."""
    if dry_run:
        target = source if source.startswith("sha256:") else str(Source.parse(source))
        if not any(one.get("target") == target for one in client().pins()):
            raise NotFound(f"{source!r} is not pinned")
        out.result({"dry_run": True, "target": source}, human=[f"would unpin {source}"])
        return
    client().unpin(source)
    out.result({"target": source}, human=[f"unpinned {source}"])


@verb("evict", example="hotshelf evict s3://weights/sdxl --dry-run")
@click.argument("source")
@DRY_RUN
def evict(out: Output, *, source: str, dry_run: bool) -> None:
    """Take SOURCE off the shelf: a revision, a source or a configured name. Refused while it is leased or pinned."""
    if dry_run:
        found = client().snapshot(source)
        _check_free(found)
        what = {"dry_run": True, "revision": found["revision"], "size": found["size"]}
        out.result(what, human=[f"would evict {found['revision']} ({size(found['size'])}, shared files stay)"])
        return
    gone = client().evict(source)
    out.result(gone, human=[f"evicted {gone.get('revision', source)}, {size(gone.get('freed_bytes', 0))} freed"])


def _check_free(found: dict[str, Any]) -> None:
    if found["leases"] or found["pinned"]:
        held = f"{found['leases']} leases hold" if found["leases"] else "a pin holds"
        raise InUse(f"{held} {found['revision']}: it would not be evicted")


VERBS = (ls, show, pin, unpin, evict)
