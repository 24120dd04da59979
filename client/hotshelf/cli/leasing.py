"""`hotshelf acquire`: weights onto the shelf, their path onto stdout."""

from __future__ import annotations

from typing import Any

import click

from hotshelf.cli import progress
from hotshelf.cli.output import Output
from hotshelf.cli.verb import Duration, client, verb
from hotshelf.lease import Lease


@verb("acquire", example="cd $(hotshelf acquire s3://weights/sdxl --allow '*.safetensors' --hold 1h)")
@click.argument("sources", metavar="SOURCE...", nargs=-1, required=True)
@click.option("--hold", metavar="TIME", type=Duration(), help="Hold it for so long, such as 30m or 1h.")
@click.option("--allow", metavar="GLOB", multiple=True, help="Only files that match; may be repeated.")
@click.option("--ignore", metavar="GLOB", multiple=True, help="No files that match; may be repeated.")
@click.option("--revision", metavar="SHA256", help="Exactly this revision; goes with one SOURCE.")
@click.option("--timeout", metavar="TIME", type=Duration(), default="10m", show_default=True, help="Give up after this.")
def acquire(
    out: Output,
    *,
    sources: tuple[str, ...],
    hold: float | None,
    allow: tuple[str, ...],
    ignore: tuple[str, ...],
    revision: str | None,
    timeout: float,
) -> None:
    """Fetch and verify SOURCEs, and print the path of each.

    They are held for the daemon's lease time after this ends, or for as long as --hold says. Several are fetched all or
    nothing.
    """
    if revision is not None and len(sources) > 1:
        raise click.UsageError("--revision goes with one SOURCE; write SOURCE@sha256:… for each of several")
    asked: dict[str, Any] = {"allow_patterns": allow or None, "ignore_patterns": ignore or None, "hold_s": hold}
    with progress.shown(out) as show:
        if len(sources) == 1:
            wanted: list[Lease] = [
                client().acquire(sources[0], revision=revision, timeout=timeout, on_progress=show, detached=True, **asked)
            ]
        else:
            wanted = [*client().acquire(sources, timeout=timeout, on_progress=show, detached=True, **asked)]
    paths = [str(lease.path) for lease in wanted]
    out.result({"leases": [_body(lease) for lease in wanted]}, human=paths, quiet=paths)
    for lease in wanted:
        for skipped in lease.skipped:
            out.note(f"left out {skipped.path}: {skipped.reason}")


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
