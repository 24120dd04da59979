"""Onto a bucket, content-named, so that a pull knows every digest before the first byte: `hotshelf push`, and what was built.

The order: blobs, then the manifest under its revision and who vouches for it under revision and key (all immutable, cacheable
for ever), then what names it and is never cached: `hotshelf.json`, `pipelines/KEY.json` or `bundles/ENVIRONMENT/GRAPH.json`.
What dies half-way has published nothing, and the next one sends only the rest: `origin.Sender` sees to that, file by file and
part by part.
"""

from __future__ import annotations

import json
import os
import stat
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from typing import TypeVar

from hotshelf_daemon.config import Settings
from hotshelf_daemon.origin import ATTEMPTS, Outgoing, Sender, Upload, again, digest_and_crc64nvme, opened, upload_to
from hotshelf_daemon.policy import Policy
from hotshelf_daemon.provenance import SIGNATURE, PublicKey, SigningKey, sign
from hotshelf_shared.built import MAX_BUILT_BYTES
from hotshelf_shared.digest import Digest, Revision
from hotshelf_shared.errors import HotshelfError, IntegrityError, InvalidRequest, NotFound
from hotshelf_shared.manifest import MAX_MANIFEST_BYTES, FileEntry, Manifest, parse_json
from hotshelf_shared.source import Source
from hotshelf_shared.wire import Progress, Skipped

IMMUTABLE = "public, max-age=31536000, immutable"
MUTABLE = "no-cache"
MAX_POINTER_BYTES = 64 << 10
POINTER = "hotshelf.json"
REPORT_S = 0.1
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class PublishReport:
    """`left_out` are files that a pull will leave out, because they execute; they were uploaded all the same.

    `uploaded_bytes` is what this push sent of the `uploaded_files`: not what an earlier one had, before it was cut off.
    """

    source: str
    revision: Revision
    files: int
    size: int
    uploaded_files: int
    uploaded_bytes: int
    left_out: tuple[Skipped, ...]
    #: The id of the key that it was signed with.
    signed_by: str | None


@dataclass(frozen=True, slots=True)
class _Local:
    path: str
    real: str
    size: int
    mtime_ns: int


def publish(
    directory: str,
    source: str,
    settings: Settings,
    *,
    tree: bool = False,
    key: SigningKey | None = None,
    on_progress: Callable[[Progress], object] = lambda _: None,
) -> PublishReport:
    """Uploads what is not there yet and publishes the manifest. With `tree`, also every file under its plain name.

    With `key`, signed: a signature that lies among the files is then the old one, and stays behind. Raises NotFound (no
    folder, no bucket), InvalidRequest (names that cannot be published), AccessDenied, OriginUnavailable.
    """
    where = Source.parse(source)
    if where.kind != "s3" or where.pinned:
        raise InvalidRequest(f"{source} is no s3://BUCKET/PREFIX to publish to")
    files = _walk(directory, without=None if key is None else SIGNATURE)
    if key is not None and (within := [file.path for file in files if os.path.samefile(file.real, key.path)]):
        raise InvalidRequest(f"the private key is in {directory}, as {within[0]}", hint="Move it out: all of DIR is published.")
    target = upload_to(settings, where.authority)
    folder = f"{where.path}/" if where.path else ""
    with ThreadPoolExecutor(os.cpu_count() or 1) as threads:
        sums = list(threads.map(_hash, files))
    manifest = Manifest.of({file.path: FileEntry(digest, file.size) for file, (digest, _) in zip(files, sums, strict=True)})
    todo = _outgoing(files, sums, folder, tree=tree)
    gauge = _Gauge(todo, source, on_progress)
    try:
        sent = Sender(target, gauge, cache(lambda: _published(target, folder))).send(todo)
    except FileNotFoundError as error:
        gone = f"{error.filename} went away while it was pushed"
        raise InvalidRequest(gone, hint="Push again when it is finished.") from error
    canonical, revision = manifest.canonical(), manifest.revision
    _again(lambda: target.put(f"{folder}manifests/{revision.hex}.json", canonical, cache_control=IMMUTABLE))
    if key is not None:
        signature, name = sign(manifest, str(where), key), signature_name(revision, key.public)
        _again(lambda: target.put(f"{folder}{name}", signature, cache_control=IMMUTABLE))
        if tree:
            _again(lambda: target.put(f"{folder}{SIGNATURE}", signature, cache_control=MUTABLE))
    pointer = {"version": 1, "revision": revision, "manifest": f"manifests/{revision.hex}.json", "files": len(files)}
    _again(lambda: target.put(f"{folder}{POINTER}", json.dumps(pointer).encode(), cache_control=MUTABLE))
    policy = Policy()
    reasons = [Skipped(file.path, why) for file in files if (why := policy.reason_by_name(file.path))]
    return PublishReport(
        source=str(where),
        revision=revision,
        files=len(files),
        size=manifest.size,
        uploaded_files=sum(size is not None for size in sent),
        uploaded_bytes=sum(size or 0 for size in sent),
        left_out=tuple(reasons),
        signed_by=key.public.id if key is not None else None,
    )


def signature_name(revision: Revision, key: PublicKey) -> str:
    """Below a prefix. With the key in it, whoever trusts one key finds its signature whoever else has signed the same."""
    return f"manifests/{revision.hex}.{key.id[:16]}.sig"


class Stopped(Exception):
    """The daemon is ending: what was not sent yet is sent by the next one."""


@dataclass(frozen=True, slots=True)
class Parcel:
    """What was built here, for the other nodes: a tree, and the document that names it.

    `name` is the document's below the prefix, without its ending. `is_this` says of what lies there already whether it stands
    for this very tree; None when nobody would believe it, so that this one takes its place.
    """

    name: str
    document: bytes
    tree: Manifest
    is_this: Callable[[bytes], bool | None]


def publish_built(
    parcel: Parcel, blob_path: Callable[[Digest], str], where: Source, settings: Settings, stopped: Callable[[], bool]
) -> bool:
    """For the other nodes, its document last; False when another tree was published under that name first.

    Raises Stopped, NotFound (a blob was evicted meanwhile, no bucket), AccessDenied, OriginUnavailable.
    """
    target = upload_to(settings, where.authority)
    folder = f"{where.path}/" if where.path else ""
    document = f"{folder}{parcel.name}.json"

    def check() -> None:
        if stopped():
            raise Stopped

    there = _again(lambda: target.read(document, MAX_BUILT_BYTES))
    if there is not None and (is_this := parcel.is_this(there)) is not None:
        return is_this
    try:
        blobs = [_blob(digest, size, blob_path(digest), folder) for digest, size in parcel.tree.blobs().items()]
        Sender(target, _Gauge(blobs, str(where), lambda _: None, check)).send(blobs)
    except FileNotFoundError as error:
        raise NotFound(f"the blob {os.path.basename(error.filename)} is held no more") from error
    check()
    manifest = f"{folder}manifests/{parcel.tree.revision.hex}.json"
    _again(lambda: target.put(manifest, parcel.tree.canonical(), cache_control=IMMUTABLE))
    _again(lambda: target.put(document, parcel.document, cache_control=MUTABLE))
    return True


def _blob(digest: Digest, size: int, real: str, folder: str) -> Outgoing:
    mtime_ns = os.stat(real).st_mtime_ns
    return Outgoing(f"{folder}blobs/sha256/{digest.hex}", digest, real, size, mtime_ns, digest, cache_control=IMMUTABLE)


def _published(target: Upload, folder: str) -> frozenset[Digest]:
    """What the manifest in force names; nothing when there is none that can be read."""
    try:
        if (pointer := target.read(f"{folder}{POINTER}", MAX_POINTER_BYTES)) is None:
            return frozenset()
        revision = Revision.parse(parse_json(pointer, POINTER, IntegrityError).get("revision"))
        data = target.read(f"{folder}manifests/{revision.hex}.json", MAX_MANIFEST_BYTES)
        return frozenset(Manifest.parse(data).blobs()) if data is not None and Digest.of(data) == revision else frozenset()
    except (HotshelfError, AttributeError):
        return frozenset()  # it only saves sending


def _walk(directory: str, without: str | None) -> list[_Local]:
    """Every regular file below, links followed (a Hugging Face cache is made of them), hidden ones and one path left out."""
    if not os.path.isdir(directory):
        raise NotFound(f"{directory} is no folder", hint="Give the folder that holds the model's files.")
    found = []
    for at, folders, names in os.walk(directory, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            real = os.path.join(at, name)
            path = os.path.relpath(real, directory)
            seen = os.stat(real)
            if stat.S_ISREG(seen.st_mode) and not name.startswith(".") and path != without:
                found.append(_Local(path, real, seen.st_size, seen.st_mtime_ns))
    if not found:
        raise NotFound(f"there are no files in {directory}")
    if any(file.path == POINTER for file in found):
        raise InvalidRequest(f"{directory} holds a {POINTER}, which is the name of what a push writes", hint="Remove it.")
    return found


def _outgoing(files: Sequence[_Local], sums: Sequence[tuple[Digest, int]], folder: str, *, tree: bool) -> list[Outgoing]:
    """Each content once, under its name; with `tree`, then each file under its path."""
    blobs: dict[Digest, Outgoing] = {}
    plain = []
    for file, (digest, crc) in zip(files, sums, strict=True):
        key = f"{folder}blobs/sha256/{digest.hex}"
        out = Outgoing(key, file.path, file.real, file.size, file.mtime_ns, digest, IMMUTABLE, crc64nvme=crc)
        blobs[digest] = out
        plain.append(replace(out, key=f"{folder}{file.path}", cache_control=MUTABLE, named=False))
    return [*blobs.values(), *plain] if tree else [*blobs.values()]


def _hash(file: _Local) -> tuple[Digest, int]:
    with opened(file.real) as fd:
        return digest_and_crc64nvme(fd)


def _again(ask: Callable[[], T]) -> T:
    return again(ask, ATTEMPTS)


class _Gauge:
    """Bytes as they go. What was there counts as done, and not towards the rate."""

    def __init__(
        self,
        files: Sequence[Outgoing],
        source: str,
        report: Callable[[Progress], object],
        check: Callable[[], object] = lambda: None,
    ) -> None:
        self._total, self._files, self._source = sum(file.size for file in files), len(files), source
        self._report, self._check = report, check
        self._lock = threading.Lock()
        self._began = time.monotonic()
        self._reported = -REPORT_S
        self._done = self._sent = self._files_done = 0

    def check(self) -> None:
        self._check()

    def sent(self, count: int) -> None:
        self._add(count, sent=count)

    def held(self, count: int) -> None:
        self._add(count)

    def done(self) -> None:
        self._add(0, files=1)

    def _add(self, count: int, *, sent: int = 0, files: int = 0) -> None:
        with self._lock:
            self._done += count
            self._sent += sent
            self._files_done += files
            now = time.monotonic()
            if now - self._reported < REPORT_S and not files:
                return
            self._reported = now
            rate = max(self._sent, 0) / max(now - self._began, 1e-6)
            left = (self._total - self._done) / rate if rate else None
            self._report(Progress("push", self._done, self._total, rate, left, self._files_done, self._files, self._source))
