"""Pure decisions: what is missing, what room it takes, who must go for it. No clock, no disk, no database."""

from __future__ import annotations

import hashlib
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from hotshelf_daemon.objects import OriginObject
from hotshelf_daemon.provenance import Vouched
from hotshelf_shared.built import Built
from hotshelf_shared.bundle import Bundle
from hotshelf_shared.digest import Digest, Revision
from hotshelf_shared.errors import InsufficientSpace, TooLarge
from hotshelf_shared.manifest import FileEntry, Manifest
from hotshelf_shared.wire import Skipped


@dataclass(frozen=True, slots=True)
class WantedFile:
    """A file of a resolution: where its bytes are, and its digest as far as it is known."""

    path: str
    object: OriginObject
    digest: Digest | None = None


@dataclass(frozen=True)
class Resolution:
    """Exactly which objects a wish stands for right now; `id` is a fingerprint of all of it.

    `published` says that a manifest names all of it, by digests that are promises; with a `commit` it can become nothing else.
    """

    source: str
    origin: str
    files: tuple[WantedFile, ...]
    skipped: tuple[Skipped, ...]
    kind: str
    published: bool
    wish: str
    commit: str | None = None
    #: What a published document says it is: bound when its files are here.
    built: Built | Bundle | None = None
    #: What a trusted key has signed, where the origin's configuration requires that: every file of it will be held to it.
    vouched: Vouched | None = None
    #: The revision of the published manifest, which has these files and those that patterns and policy left out.
    release: Revision | None = None
    #: When its source had been rolled back as this was resolved; None when it had not. Then it is what the source is to stay
    #: at, unless it does not flip: then it is what the origin has now, for a refresh.
    rolled_back_at: float | None = None
    flips: bool = True

    @cached_property
    def id(self) -> str:
        seen = hashlib.sha256(f"{self.wish}\n{self.origin}\n{self.kind}\n".encode())
        for file in self.files:
            # A digest that was learnt or comes with the object says nothing new: the object's version stands for it.
            promised = file.digest if self.published else ""
            seen.update(f"{file.path}\0{file.object.key}\0{file.object.version}\0{file.object.size}\0{promised}\n".encode())
        for skip in self.skipped:
            seen.update(f"{skip.path}\0{skip.reason}\n".encode())
        return seen.hexdigest()

    @property
    def size(self) -> int:
        return sum(file.object.size for file in self.files)

    @property
    def promised(self) -> Manifest | None:
        """The tree that this becomes, where every digest is known before a byte of it is read."""
        entries = {f.path: FileEntry(f.digest, f.object.size) for f in self.files if f.digest is not None}
        return Manifest.of(entries) if len(entries) == len(self.files) else None


@dataclass(frozen=True, slots=True)
class Missing:
    """One content to fetch, once, however many files of however many sources want it."""

    origin: str
    object: OriginObject
    digest: Digest | None

    @property
    def key(self) -> tuple[str, ...]:
        """What single flight is keyed on: the content where it is known, the object's version where not."""
        return (self.digest,) if self.digest else (self.origin, self.object.key, self.object.version)


def missing(resolutions: Iterable[Resolution], held: Mapping[Digest, int]) -> list[Missing]:
    """What has to be fetched for all of them together, the largest first."""
    wanted: dict[tuple[str, ...], Missing] = {}
    for resolution in resolutions:
        for file in resolution.files:
            if file.digest is None or file.digest not in held:
                item = Missing(resolution.origin, file.object, file.digest)
                wanted.setdefault(item.key, item)
    return sorted(wanted.values(), key=lambda item: (-item.object.size, item.object.key))


# ---- going back


@dataclass(frozen=True, slots=True)
class HeldRef:
    """What one want of a source stands for, as rolling back sees it: the tree it names, and the one before if that is ready.

    `origin` and `origin_before` are what they were taken from, a published manifest or a commit, where it was either.
    `flipped_before` is when it came to name the tree before.
    """

    wish: str
    flipped_at: float
    tree: Manifest
    origin: str | None
    before: Manifest | None
    origin_before: str | None
    flipped_before: float = 0.0


@dataclass(frozen=True, slots=True)
class WayBack:
    """Wishes by what becomes of them: `lead` and `back` go back, `stay` are of that time already, `lost` are forgotten."""

    lead: str
    back: tuple[str, ...] = ()
    stay: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()


def way_back(refs: Sequence[HeldRef], named: str) -> WayBack | None:
    """All wants of a source to one time: that before the last change of the wish `named`, else of the one that changed last.

    What was taken of the source under other patterns agrees with it when it comes of the same manifest or commit, or is part of
    what goes back; else, where neither is known, when no file that both have differs: of two trees that do, the one goes back
    that changed since. None when nothing can go back.
    """
    able = [ref for ref in refs if ref.before is not None]
    if not able:
        return None
    lead = max(able, key=lambda ref: (ref.wish == named, ref.flipped_at, len(ref.tree)))
    assert lead.before is not None

    def agrees(tree: Manifest | None, origin: str | None) -> bool:
        if tree is None or lead.before is None:
            return False
        same = all(tree[path].digest == lead.before[path].digest for path in tree.keys() & lead.before.keys())
        if origin is not None and lead.origin_before is not None:
            return origin == lead.origin_before or (same and tree.keys() <= lead.before.keys())
        return same

    ways: dict[str, list[str]] = {"back": [], "stay": [], "lost": []}
    for ref in refs:
        if ref is not lead:
            stays, goes = agrees(ref.tree, ref.origin), agrees(ref.before, ref.origin_before)
            if stays and goes and None in (ref.origin, lead.origin_before):
                stays = ref.flipped_at <= lead.flipped_before
            ways["stay" if stays else "back" if goes else "lost"].append(ref.wish)
    return WayBack(lead.wish, **{way: tuple(wishes) for way, wishes in ways.items()})


# ---- room


@dataclass(frozen=True, slots=True)
class HeldSnapshot:
    """A snapshot as collection sees it; `rooted` means a lease or pin holds it, `shown` that others may read it without one."""

    revision: Revision
    last_grant: int
    blobs: frozenset[Digest]
    rooted: bool
    shown: bool = False


@dataclass(frozen=True, slots=True)
class Holdings:
    """Everything that is held, in bytes. `wanted` are blobs that acquires under way or workers handing in count on."""

    budget: int
    held: int
    free: int
    blobs: Mapping[Digest, int]
    snapshots: Sequence[HeldSnapshot]
    wanted: frozenset[Digest] = frozenset()
    abandoned: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Eviction:
    """What goes, and the bytes that frees: interrupted ingests, whole snapshots, and the blobs nobody else holds."""

    ingests: tuple[str, ...] = ()
    snapshots: tuple[Revision, ...] = ()
    blobs: tuple[Digest, ...] = ()
    freed: int = 0

    def __bool__(self) -> bool:
        return bool(self.ingests or self.snapshots or self.blobs)


def make_room(shelf: Holdings, need: int, *, holders: Sequence[Mapping[str, Any]] = ()) -> Eviction:
    """The least that must go so that `need` more bytes fit, oldest first; never what a root holds.

    Nobody's bytes go first, then interrupted ingests, then the snapshots that were leased longest ago,
    those that show below hub/ last. Raises TooLarge
    when it could never fit and InsufficientSpace, naming the holders, when it does not fit now.
    """
    if need > shelf.budget:
        raise TooLarge(f"it needs {need:,} bytes and the budget is {shelf.budget:,}", need_bytes=need)
    short = max(shelf.held + need - shelf.budget, need - shelf.free)
    if short <= 0:
        return Eviction()
    claims = Counter(blob for snapshot in shelf.snapshots for blob in snapshot.blobs)
    blobs = [blob for blob in shelf.blobs if blob not in claims and blob not in shelf.wanted]
    freed = sum(shelf.blobs[blob] for blob in blobs)
    ingests: list[str] = []
    snapshots: list[Revision] = []
    for ingest, size in shelf.abandoned.items():
        if freed < short:
            ingests.append(ingest)
            freed += size
    for snapshot in sorted((s for s in shelf.snapshots if not s.rooted), key=lambda s: (s.shown, s.last_grant)):
        if freed < short:
            claims.subtract(snapshot.blobs)
            loose = [b for b in snapshot.blobs if not claims[b] and b not in shelf.wanted and b in shelf.blobs]
            snapshots.append(snapshot.revision)
            blobs += loose
            freed += sum(shelf.blobs[blob] for blob in loose)
    if freed < short:
        raise _no_room(shelf, need, short - freed, holders)
    return Eviction(tuple(ingests), tuple(snapshots), tuple(blobs), freed)


def _no_room(shelf: Holdings, need: int, lacking: int, holders: Sequence[Mapping[str, Any]]) -> InsufficientSpace:
    named = "; ".join(
        f"{holder['sources'] or holder['revision']} holds {holder['bytes']:,} bytes"
        f" ({holder['leases']} leases{', pinned' if holder['pinned'] else ''})"
        for holder in holders
    )
    return InsufficientSpace(
        f"it needs {need:,} bytes; {lacking:,} are lacking of a budget of {shelf.budget:,}"
        f" ({shelf.free:,} free on the disk): {named or 'downloads and hand-ins under way hold the rest'}",
        need_bytes=need,
        lacking_bytes=lacking,
        budget_bytes=shelf.budget,
        holders=[dict(holder) for holder in holders],
    )


#: What may lie beyond the hash when the last bytes of a file arrive: it is hashed after them, and waited for.
TAIL_BYTES = 48 << 20
LEAST_SEGMENT_BYTES = 1 << 20


class Cut:
    """The ranges [start, stop) still to be read of a file, handed out in order, none longer than `segment_bytes`.

    Towards the end they get shorter, so that connections end at about the same time, and the hash soon after them.
    """

    def __init__(self, size: int, segment_bytes: int, done: Iterable[tuple[int, int]] = ()) -> None:
        self._segment_bytes = segment_bytes
        self._gaps = deque[tuple[int, int]]()
        self.taken = 0
        at = 0
        for start, stop in [*sorted(done), (size, size)]:
            if at < start:
                self._gaps.append((at, start))
            at = max(at, stop)
        self.left = sum(stop - start for start, stop in self._gaps)

    def next(self, at_once: int) -> tuple[int, int] | None:
        """The next range, where `at_once` are read at the same time; None when all are handed out."""
        if not self._gaps:
            return None
        start, stop = self._gaps.popleft()
        end = min(stop, start + self._length(at_once))
        if end < stop:
            self._gaps.appendleft((end, stop))
        self.left -= end - start
        self.taken += 1
        return start, end

    def _length(self, at_once: int) -> int:
        if at_once == 1:
            return self._segment_bytes
        least = min(self._segment_bytes, max(LEAST_SEGMENT_BYTES, min(self._segment_bytes // 4, TAIL_BYTES // at_once)))
        return max(least, min(self._segment_bytes, self.left // at_once))
