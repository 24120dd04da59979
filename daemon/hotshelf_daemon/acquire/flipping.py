"""What a want becomes when its files are here: the tree, and the ref that names it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from hotshelf_daemon import policy
from hotshelf_daemon.acquire.names import Want
from hotshelf_daemon.index.rollbacks import RollbackRow
from hotshelf_daemon.index.snapshots import RefRow
from hotshelf_daemon.ingest import Brought
from hotshelf_daemon.plan import Resolution
from hotshelf_shared.errors import IntegrityError, NotFound, UnsafeContent
from hotshelf_shared.manifest import FileEntry, Manifest
from hotshelf_shared.wire import Skipped


def tree_of(want: Want, resolution: Resolution, facts: Mapping[str, Brought]) -> tuple[Manifest, tuple[Skipped, ...]]:
    """The tree after the policy has seen the bytes, and what it left out. Raises IntegrityError or UnsafeContent.

    `facts` has each file's content, by path.
    """
    skipped, entries = [*resolution.skipped], {}
    for file in resolution.files:
        fact = facts[file.path]
        if fact.unsafe and not want.policy.allow_pickle:
            skipped.append(Skipped(file.path, fact.unsafe))
            continue
        if fact.size != file.object.size:
            raise IntegrityError(f"{file.object.key} is {fact.size:,} bytes, its manifest says {file.object.size:,}")
        entries[file.path] = FileEntry(fact.digest, fact.size)
    policy.check_weights_left(want.source, entries, skipped)
    if resolution.vouched is not None:
        resolution.vouched.statement.check({path: entry.digest for path, entry in entries.items()}, want.source)
    tree = Manifest.of(entries)
    if resolution.built is not None and tree.revision != resolution.built.revision:
        raise UnsafeContent(f"{want.source} holds files that execute: {', '.join(skip.path for skip in skipped)[:200]}")
    pinned = want.source.pinned
    if pinned is not None and not resolution.published and tree.revision != pinned:
        raise IntegrityError(
            f"{want.source.unpinned} has the revision {tree.revision}, not {pinned}",
            hint="The prefix has changed since, or other patterns or policy applied when the revision was taken.",
        )
    return tree, tuple(skipped)


def ref_of(
    want: Want, resolution: Resolution, tree: Manifest, skipped: tuple[Skipped, ...], *, before: RefRow | None, now: float
) -> RefRow:
    """The ref that takes the place of `before`. `now` in seconds since the epoch."""
    ref = RefRow(
        wish=want.key,
        source=str(want.source),
        allow=want.patterns.allow,
        ignore=want.patterns.ignore,
        revision=tree.revision,
        listing=resolution.id,
        skipped=skipped,
        kind=resolution.kind,
        flipped_at=now,
        signed_by=resolution.vouched.by if resolution.vouched is not None else None,
        release=resolution.release,
        commit=resolution.commit,
    )
    if before is None:
        return ref
    if before.revision == tree.revision:  # nothing new: it stands where it stood, for as long
        return replace(ref, previous=before.previous, before=before.before, flipped_at=before.flipped_at)
    return replace(ref, previous=before.revision, before=replace(before.alone, checked_at=0.0))


def frozen_at(want: Want, ref: RefRow | None) -> RollbackRow | None:
    """What a frozen name is to stay at though its files were lost: a rollback to where it is. None for what may follow."""
    if ref is None or not want.frozen or want.source.is_fixed:
        return None
    return RollbackRow(str(want.source), want.key, ref.revision, ref.release, ref.flipped_at, 0, ref.commit)


def gone(want: Want, rollback: RollbackRow, why: str) -> NotFound:
    """A source stays where it was rolled back to, also when that cannot be had: never what its origin has now instead."""
    lost = rollback.release or rollback.commit or rollback.revision
    return NotFound(
        f"{want.source} has {why} to {lost}, whose files are not held and cannot be had from its origin",
        hint=f"`hotshelf refresh {want.source}` takes what the origin has now; or publish that revision there again.",
    )
