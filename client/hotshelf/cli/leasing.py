"""`hotshelf acquire`: weights onto the shelf, their path onto stdout."""

from __future__ import annotations

from typing import Any

import click

from hotshelf.cli import progress
from hotshelf.cli.output import Output, size
from hotshelf.cli.verb import Duration, client, verb
from hotshelf.lease import Lease
from hotshelf.warming import Warmed


@verb("acquire", example="cd $(hotshelf acquire s3://weights/sdxl --allow '*.safetensors' --hold 1h)")
@click.argument("sources", metavar="SOURCE...", nargs=-1, required=True)
@click.option("--hold", metavar="TIME", type=Duration(), help="Hold it for so long, such as 30m or 1h.")
@click.option("--allow", metavar="GLOB", multiple=True, help="Only files that match; may be repeated.")
@click.option("--ignore", metavar="GLOB", multiple=True, help="No files that match; may be repeated.")
@click.option("--revision", metavar="SHA256", help="Exactly this revision; goes with one SOURCE.")
@click.option("--warm", is_flag=True, help="Read it into the page cache, as far as memory and --timeout go.")
@click.option("--timeout", metavar="TIME", type=Duration(), default="10m", show_default=True, help="Give up after this.")
def acquire(
    out: Output,
    *,
    sources: tuple[str, ...],
    hold: float | None,
    allow: tuple[str, ...],
    ignore: tuple[str, ...],
    revision: str | None,
    warm: bool,
    timeout: float,
) -> None:
    """Fetch and verify SOURCEs, and print the path of each.

    They are held for the daemon's lease time after this ends, or for as long as --hold says. Several are fetched all or
    nothing.
    """
    if revision is not None and len(sources) > 1:
        raise click.UsageError("--revision goes with one SOURCE; write SOURCE@sha256:… for each of several")
    asked: dict[str, Any] = {
        "allow_patterns": allow or None,
        "ignore_patterns": ignore or None,
        "hold_s": hold,
        "timeout": timeout,
        "detached": True,
        "warm": warm,
    }
    with progress.shown(out) as show:
        if len(sources) == 1:
            wanted: list[Lease] = [client().acquire(sources[0], revision=revision, on_progress=show, **asked)]
        else:
            wanted = [*client().acquire(sources, on_progress=show, **asked)]
    paths = [str(lease.path) for lease in wanted]
    body: dict[str, Any] = {"leases": [_body(lease) for lease in wanted]}
    if (warmed := wanted[0].warmed) is not None:
        body["warmed"] = warmed.to_json()
        out.note(_said(warmed))
    out.result(body, human=paths, quiet=paths)
    for lease in wanted:
        for skipped in lease.skipped:
            out.note(f"left out {skipped.path}: {skipped.reason}")


def _said(warmed: Warmed) -> str:
    there = size(warmed.read_bytes + warmed.cached_bytes)
    said = f"{there} in the page cache: {size(warmed.read_bytes)} read in {warmed.seconds:.1f} s, the rest was there"
    return f"{said}; no {warmed.short_of} for {size(warmed.skipped_bytes)}" if warmed.short_of is not None else said


def _body(lease: Lease) -> dict[str, Any]:
    return {
        "id": lease.id,
        "source": lease.source,
        "revision": lease.revision,
        "path": str(lease.path),
        "kind": lease.kind,
        "expires_s": lease.expires_s,
        "files": {path: {"digest": entry.digest, "size": entry.size} for path, entry in lease.files.items()},
        "skipped": [{"path": one.path, "reason": one.reason} for one in lease.skipped],
    }


VERBS = (acquire,)
