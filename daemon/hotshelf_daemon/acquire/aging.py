"""How old what a ref names is, and whether it may be newer at its origin. Pure.

The words are HTTP's: *fresh* was compared with its origin within `revalidate_s`, *stale* is compared after the next acquire,
*immutable* cannot be another. *frozen* (by `freeze: true`) and *rolled_back* are not compared until they are refreshed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hotshelf_daemon.acquire.names import Want
from hotshelf_daemon.index.snapshots import RefRow
from hotshelf_shared.source import KEYED

#: No ref names it any more, but one did until its last change: what a rollback goes back to.
PREVIOUS = "previous"


def freshness(ref: RefRow, want: Want | None, *, rolled_back: bool, revalidate_s: float, now: float) -> str:
    """A word. `want` is None for a ref that nobody's wish leads to any more; `now` in seconds since the epoch."""
    if rolled_back:
        return "rolled_back"
    if want is not None and (want.source.is_fixed or want.source.kind in KEYED):
        return "immutable"
    if want is not None and want.frozen:
        return "frozen"
    return "fresh" if now - ref.checked_at < revalidate_s else "stale"


def aged(ref: RefRow, want: Want | None, *, rolled_back: bool, revalidate_s: float, now: float) -> dict[str, Any]:
    """A ref as `ls` tells of it: seconds since it came to name this revision, and since its origin was last asked."""
    return {
        "source": ref.source,
        "allow_patterns": ref.allow,
        "ignore_patterns": ref.ignore,
        "age_s": round(max(0.0, now - ref.flipped_at), 1),
        "checked_s": round(max(0.0, now - ref.checked_at), 1),
        "freshness": freshness(ref, want, rolled_back=rolled_back, revalidate_s=revalidate_s, now=now),
    }


def standing(refs: Sequence[Mapping[str, Any]], otherwise: str | None = None) -> dict[str, Any]:
    """What a snapshot is to its sources, by the refs that name it, the newest first; `otherwise` is said when none does."""
    newest = refs[0] if refs else {"age_s": None, "checked_s": None, "freshness": otherwise}
    return {
        "sources": sorted({ref["source"] for ref in refs}),
        "age_s": newest["age_s"],
        "checked_s": newest["checked_s"],
        "freshness": newest["freshness"],
        "refs": [*refs],
    }
