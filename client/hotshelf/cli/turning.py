"""`hotshelf refresh` and `rollback`: what a source's origin has now, or what it had before."""

from __future__ import annotations

from typing import Any

import click

from hotshelf.cli import progress
from hotshelf.cli.output import Output, short
from hotshelf.cli.shelf import DRY_RUN
from hotshelf.cli.verb import Duration, client, verb


@verb("refresh", example="hotshelf refresh s3://weights/sdxl")
@click.argument("source")
@click.option("--timeout", metavar="TIME", type=Duration(), default="10m", show_default=True, help="Give up after this.")
def refresh(out: Output, *, source: str, timeout: float) -> None:
    """Ask the origin of SOURCE now, fetch what has changed, and take it.

    SOURCE is a source or a configured name. Ends a rollback. When the origin cannot be reached, all stays as it is.
    """
    with progress.shown(out) as show:
        done = client().refresh(source, timeout=timeout, on_progress=show)
    out.result(done, human=[_refreshed(done)], quiet=[done["revision"]])


def _refreshed(done: dict[str, Any]) -> str:
    if done.get("pinned"):
        return f"{done['source']} names its revision: that never changes"
    unfrozen = ", and follows its origin again" if done.get("unfrozen") else ""
    if done["previous"] is None:
        return f"{done['source']} is {done['revision']}, fetched{unfrozen}"
    if done["revision"] == done["previous"]:
        parts = "; what else is held of it has changed" if done.get("changed") else " as before"
        return f"{done['source']} is {done['revision']}{parts}{unfrozen}"
    return f"{done['source']} is {done['revision']}, and was {short(done['previous'])}{unfrozen}"


@verb("rollback", example="hotshelf rollback s3://weights/sdxl --dry-run")
@click.argument("name")
@DRY_RUN
def rollback(out: Output, *, name: str, dry_run: bool) -> None:
    """Return NAME to its previous revision, and keep it there until `hotshelf refresh NAME`.

    NAME is a source or a configured name. Everything that is held of it goes back, under whichever patterns. Workers keep what
    they hold; who acquires from now on gets the previous revision. Once more, and it goes forth again.
    """
    done = client().rollback(name, dry_run=dry_run)
    does = "would go" if dry_run else "went"
    lost = sum(ref.get("way") == "forgotten" for ref in done.get("refs", ()))
    human = [f"{done['source']} {does} back to {done['revision']} from {short(done['previous'])}"]
    if lost:
        human.append(f"selections of its files not held from then, to be fetched anew if it was published: {lost}")
    out.result(done, human=human, quiet=[done["revision"]])


VERBS = (refresh, rollback)
