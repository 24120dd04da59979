"""Onto a bucket, content-named, so that a pull knows every digest before the first byte: `hotshelf push`, and pipelines.

The order: blobs, then the manifest under its revision and who vouches for it under revision and key (all immutable, cacheable
for ever), then what names it and is never cached: `hotshelf.json`, or `pipelines/KEY.json`. What dies half-way has published
nothing, and the next one uploads only the rest.
"""

from __future__ import annotations

import json
import os
import stat
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from hotshelf_daemon.config import Settings
from hotshelf_daemon.origin import Upload, delay_s, upload_to
from hotshelf_daemon.policy import Policy
from hotshelf_daemon.provenance import SIGNATURE, PublicKey, SigningKey, sign
from hotshelf_shared.built import MAX_BUILT_BYTES, Built
from hotshelf_shared.digest import Digest, Revision
from hotshelf_shared.errors import IntegrityError, InvalidRequest, NotFound, OriginUnavailable
from hotshelf_shared.manifest import FileEntry, Manifest
from hotshelf_shared.source import Source
from hotshelf_shared.wire import Progress, Skipped

IMMUTABLE = "public, max-age=31536000, immutable"
MUTABLE = "no-cache"
POINTER = "hotshelf.json"
UPLOADS_AT_ONCE = 4
ATTEMPTS = 5
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class PublishReport:
    """`left_out` are files that a pull will leave out, because they execute; they were uploaded all the same."""

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
        digests = list(threads.map(_hash, files))
    manifest = Manifest.of({f.path: FileEntry(digest, f.size) for f, digest in zip(files, digests, strict=True)})
    blobs = {digest: file for file, digest in zip(files, digests, strict=True)}
    todo = [(f"{folder}blobs/sha256/{digest.hex}", file, digest) for digest, file in blobs.items()]
    if tree:
        todo += [(f"{folder}{file.path}", file, digest) for file, digest in zip(files, digests, strict=True)]
    gauge = _Gauge(sum(file.size for _, file, _ in todo), len(todo), source, on_progress)
    with ThreadPoolExecutor(UPLOADS_AT_ONCE) as threads:
        sent = list(threads.map(partial(_send, target, gauge), todo))
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


def publish_built(
    built: Built, blob_path: Callable[[Digest], str], where: Source, settings: Settings, stopped: Callable[[], bool]
) -> bool:
    """A pipeline for the other nodes, its document last; False when another tree of that key was published first.

    Raises Stopped, NotFound (a blob was evicted meanwhile, no bucket), AccessDenied, OriginUnavailable.
    """
    target = upload_to(settings, where.authority)
    folder = f"{where.path}/" if where.path else ""
    document = f"{folder}pipelines/{built.key}.json"

    def check(_: object = None) -> None:
        if stopped():
            raise Stopped

    if (there := _again(lambda: target.read(document, MAX_BUILT_BYTES))) is not None:
        return _is_revision(there, built)
    gauge = _Gauge(0, len(built.tree), str(where), check)
    for digest, size in built.tree.blobs().items():
        real = blob_path(digest)
        try:
            file = _Local(digest, real, size, os.stat(real).st_mtime_ns)
            _send(target, gauge, (f"{folder}blobs/sha256/{digest.hex}", file, digest), check)
        except FileNotFoundError as error:
            raise NotFound(f"the blob {digest} is held no more") from error
    manifest = f"{folder}manifests/{built.revision.hex}.json"
    _again(lambda: target.put(manifest, built.tree.canonical(), cache_control=IMMUTABLE))
    _again(lambda: target.put(document, built.canonical(), cache_control=MUTABLE))
    return True


def _is_revision(document: bytes, built: Built) -> bool:
    try:
        return Built.parse(document, built.key).revision == built.revision
    except IntegrityError:
        return False  # whatever it is, it is not ours to replace


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


def _hash(file: _Local) -> Digest:
    fd = os.open(file.real, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return Digest.of_fd(fd)
    finally:
        os.close(fd)


def _send(
    target: Upload, gauge: _Gauge, item: tuple[str, _Local, Digest], on_bytes: Callable[[int], None] | None = None
) -> int | None:
    """Uploads one file unless it is there; the bytes sent, or None. A file that changed since it was hashed is refused."""
    key, file, digest = item
    began = False

    def upload() -> bool:
        """Looks first, each time: an upload whose answer was lost, or another pusher's, may be there by now."""
        nonlocal began
        if target.digest_at(key, file.size) == digest:
            return began
        began = True
        target.put_file(key, file.real, digest, cache_control=IMMUTABLE if "/sha256/" in key else MUTABLE, on_bytes=on_bytes)
        return True

    if not _again(upload):
        gauge.done(file.size)
        return None
    seen = os.stat(file.real)
    if (seen.st_size, seen.st_mtime_ns) != (file.size, file.mtime_ns):
        raise InvalidRequest(f"{file.path} changed while it was pushed", hint="Push again when it is finished.")
    gauge.done(file.size)
    return file.size


def _again(ask: Callable[[], T]) -> T:
    for attempt in range(ATTEMPTS):
        try:
            return ask()
        except OriginUnavailable as error:
            if not error.retryable or attempt + 1 == ATTEMPTS:
                raise
            time.sleep(delay_s(attempt, asked=error.retry_after_s))
    raise AssertionError("unreachable")


class _Gauge:
    def __init__(self, total: int, files: int, source: str, report: Callable[[Progress], object]) -> None:
        self._total, self._files, self._source, self._report = total, files, source, report
        self._began = time.monotonic()
        self._done = self._files_done = 0

    def done(self, size: int) -> None:
        self._done += size
        self._files_done += 1
        rate = self._done / max(time.monotonic() - self._began, 1e-6)
        left = (self._total - self._done) / rate if rate else None
        self._report(Progress("push", self._done, self._total, rate, left, self._files_done, self._files, self._source))
