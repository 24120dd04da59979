"""What a wish stands for at its origin right now: one object, a published manifest, a commit, or a listing. Blocks.

A key that is an object wins over a folder. A folder with `hotshelf.json` is taken at its manifest's word (and held to
it); any other is listed, and every object pinned to the version that was listed. A repository is listed at a commit, which
never changes. Whether anybody vouches for it is `vouching`'s question.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from hotshelf_daemon.acquire.names import Want
from hotshelf_daemon.index.blobs import Learnt
from hotshelf_daemon.objects import OriginObject
from hotshelf_daemon.origin import Mirrored, Origin
from hotshelf_daemon.plan import Resolution, WantedFile
from hotshelf_daemon.policy import check_weights_left
from hotshelf_daemon.provenance import SIGNATURE
from hotshelf_shared.digest import Digest, Revision
from hotshelf_shared.errors import AccessDenied, IntegrityError, InvalidRequest, NotFound, UnsafeContent
from hotshelf_shared.manifest import MAX_MANIFEST_BYTES, Manifest, check_paths, parse_json
from hotshelf_shared.source import Source
from hotshelf_shared.wire import Skipped

POINTER = "hotshelf.json"
_PUSHED = re.compile(r"(blobs/sha256/[0-9a-f]{64}|manifests/[0-9a-f]{64}(\.json|\.[0-9a-f]{16}\.sig))\Z")


@dataclass(frozen=True, slots=True)
class Found:
    """Everything at the source, before patterns and policy."""

    files: tuple[WantedFile, ...]
    kind: str
    #: The revision of the published manifest that it comes from.
    revision: Revision | None = None
    #: The commit of a repository: all that was listed can never become something else.
    commit: str | None = None

    @property
    def published(self) -> bool:
        return self.revision is not None


def find(origin: Origin, want: Want) -> Found:
    """Raises NotFound, AccessDenied, OriginUnavailable, IntegrityError (a broken manifest), UnsafeContent (bad keys)."""
    if want.source.kind == "hf":
        return _committed(origin, want.source)
    path = want.source.path
    denied: AccessDenied | None = None
    # Where there are mirrors, `hotshelf.json` is to be the one thing that the origin itself is asked for.
    for look in (_tree, _single) if isinstance(origin, Mirrored) else (_single, _tree):
        try:
            if (found := look(origin, path, want.source.pinned)) is not None:
                return found
        except AccessDenied as error:
            denied = error  # without leave to list, S3 answers 403 for what is not there: the other may still do
    if denied is not None:
        raise denied
    return Found(_listed(origin, path, str(want.source)), "tree")


def _committed(origin: Origin, source: Source) -> Found:
    """A repository at the commit that its revision is now."""
    repo, ref = f"{source.authority}/{source.path}", source.ref or "main"
    if (commit := origin.read(f"{repo}/refs/{ref}", 64)) is None:
        hint = "Name a branch, a tag or a commit of it after the @; without one it is main."
        raise NotFound(f"{repo} has no revision {ref!r} at {origin.label}", hint=hint, missing="revision")
    return Found(_listed(origin, f"{repo}/{commit.decode()}", str(source)), "tree", commit=commit.decode())


def _single(origin: Origin, path: str, _pinned: Revision | None) -> Found | None:
    single = origin.head(path) if path else None
    return Found((WantedFile(path.rpartition("/")[2], single),), "file") if single is not None else None


def _tree(origin: Origin, path: str, pinned: Revision | None) -> Found | None:
    tree = _published(origin, path, pinned)
    if tree is None:
        return None
    return Found(tuple(_blob(path, name, entry.digest, entry.size) for name, entry in tree.items()), "tree", tree.revision)


def narrow(want: Want, origin: Origin, found: Found, learnt: Mapping[str, Learnt], *, signed: bool = False) -> Resolution:
    """Patterns, then policy by name, then what was learnt before. Raises NotFound or UnsafeContent when nothing is left.

    `signed` says that every file must be: the signature is not, and stays behind.
    """
    selected = [file for file in found.files if want.patterns.selects(file.path)]
    if not selected:
        raise NotFound(
            f"the patterns leave nothing of {want.source}: it has {_some(file.path for file in found.files)}",
            hint="Widen allow_patterns or ignore_patterns; they match the whole relative path.",
        )
    skipped = [Skipped(file.path, why) for file in selected if (why := want.policy.reason_by_name(file.path))]
    if signed:
        skipped += [Skipped(file.path, "the signature itself") for file in selected if file.path == SIGNATURE]
    left_out = {skip.path for skip in skipped}
    kept = [file for file in selected if file.path not in left_out]
    check_weights_left(want.source, (file.path for file in kept), skipped)
    kept = [_with_learnt(file, learnt) if file.digest is None else file for file in kept]
    return Resolution(
        source=str(want.source),
        origin=origin.name,
        files=tuple(sorted(kept, key=lambda file: file.path)),
        skipped=tuple(skipped),
        kind=found.kind,
        published=found.published,
        commit=found.commit,
        wish=want.key,
        release=found.revision,
    )


def _with_learnt(file: WantedFile, learnt: Mapping[str, Learnt]) -> WantedFile:
    known = learnt.get(file.object.key)
    same = known is not None and (known.version, known.size) == (file.object.version, file.object.size)
    return WantedFile(file.path, file.object, known.digest if known is not None and same and file.object.version else None)


def _published(origin: Origin, path: str, pinned: Revision | None) -> Manifest | None:
    """The manifest in force: the pinned one, or the one that `hotshelf.json` names; None for a plain folder."""
    folder = f"{path}/" if path else ""
    if pinned is not None and (data := origin.read(f"{folder}manifests/{pinned.hex}.json", MAX_MANIFEST_BYTES)) is not None:
        return _parse_manifest(data, pinned, folder)
    pointer = origin.read(f"{folder}{POINTER}", 64 << 10)
    if pointer is None:
        return None
    body = parse_json(pointer, f"{folder}{POINTER}", IntegrityError)
    try:
        revision = Revision.parse(body["revision"])
    except (TypeError, KeyError, InvalidRequest) as error:
        raise IntegrityError(f"{folder}{POINTER} names no revision", hint="Publish again with `hotshelf push`.") from error
    if pinned is not None and revision != pinned:
        raise NotFound(
            f"the revision {pinned} is not published at {origin.label}; the current one is {revision}",
            hint="Correct the revision, or leave it out for the current one.",
        )
    data = origin.read(f"{folder}manifests/{revision.hex}.json", MAX_MANIFEST_BYTES)
    if data is None:
        raise IntegrityError(f"{folder}{POINTER} names the manifest {revision}, which is not there")
    return _parse_manifest(data, revision, folder)


def _parse_manifest(data: bytes, revision: Revision, folder: str) -> Manifest:
    if Digest.of(data) != revision:
        raise IntegrityError(f"the manifest {folder}manifests/{revision.hex}.json has the digest {Digest.of(data)}")
    tree = Manifest.parse(data)
    if tree.revision != revision:
        raise IntegrityError(f"the manifest {folder}manifests/{revision.hex}.json is not in canonical form")
    return tree


def _blob(path: str, name: str, digest: Digest, size: int) -> WantedFile:
    folder = f"{path}/" if path else ""
    return WantedFile(name, OriginObject(f"{folder}blobs/sha256/{digest.hex}", size, ""), digest)


def _listed(origin: Origin, path: str, source: str) -> tuple[WantedFile, ...]:
    below = len(path) + 1 if path else 0
    files = tuple(WantedFile(obj.key[below:], obj, obj.digest) for obj in origin.list(path))
    plain = tuple(file for file in files if not _PUSHED.match(file.path))
    if not plain:
        why = "a push to it has not finished" if files else "no object has that key or lies in that folder"
        raise NotFound(f"there is nothing at {source}: {why}", hint="Check the bucket and prefix; names are exact.")
    try:
        check_paths(file.path for file in plain)
    except InvalidRequest as error:
        raise UnsafeContent(f"{source} cannot become a directory: {error.message}", hint="Rename that key.") from error
    return plain


def _some(paths: Iterable[str]) -> str:
    listed = sorted(paths)
    return ", ".join(listed[:5]) + (f" and {len(listed) - 5} more" if len(listed) > 5 else "")
