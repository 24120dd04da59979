"""Caches that Hugging Face's libraries keep on this machine: files under the names of their contents, believed in nothing.

They are somebody else's, who may write there what he likes. Invariant: nothing but regular files below a cache is opened, and
no link is followed but the one that the library itself makes, from a repository's blob into the blobs that all of them share.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import re
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from hotshelf_daemon.objects import OriginObject
from hotshelf_shared.digest import Digest

log = logging.getLogger(__name__)
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_NAME = re.compile(r"[0-9a-f]{64}\Z|[0-9a-f]{40}\Z")
_REPOSITORY = re.compile(r"(models|datasets|spaces)--")
#: What stands in a link of a repository's `blobs/`, where contents are shared: huggingface_hub/utils/_shared_blobs.py.
_SHARED = re.compile(r"\.\./\.\./blobs/([0-9a-f]{2})/([0-9a-f]{64})\Z")
#: How long what lies where is remembered, seconds, and how many names and wrong files are at the most.
LISTED_S = 10.0
MOST_LISTED = 100_000
MOST_WRONG = 4_096


@dataclass(frozen=True, slots=True)
class Found:
    """An open file of the wanted size. `mark` tells it apart from any other, and from itself with other bytes."""

    path: str
    fd: int
    mark: tuple[int, ...]


def name_of(origin: str, obj: OriginObject, expected: Digest | None) -> str | None:
    """What an object is called in a cache: git's name where a hub gives it, else its sha256; None if neither is known."""
    if origin.startswith("hf:") and re.fullmatch(r"[0-9a-f]{40}", obj.version):
        return obj.version
    return None if expected is None else expected.hex


def is_git_s(name: str, size: int, pieces: Iterable[memoryview]) -> bool:
    """Whether git calls these bytes so (`git hash-object`)."""
    seen = hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
    for piece in pieces:
        seen.update(piece)
    return seen.hexdigest() == name


class Caches:
    """`folders` in the order in which they are asked. Called from many threads; a cache that hangs hangs whoever asks."""

    def __init__(self, folders: Sequence[str], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._folders, self._clock = tuple(folders), clock
        self._places: dict[str, list[tuple[str, str]]] = {}
        self._listed_at: float | None = None
        self._wrong: dict[tuple[int, ...], None] = {}
        self._lock = threading.Lock()

    def __bool__(self) -> bool:
        return bool(self._folders)

    def lists(self, name: str) -> bool:
        return bool(self._where(name))

    @contextmanager
    def opened(self, name: str, size: int) -> Iterator[Found | None]:
        """The first file of this name and size that was not found to be wrong. What cannot be read is not there."""
        with ExitStack() as held:
            yield next(self._candidates(name, size, held), None)

    def wrong(self, found: Found, why: str) -> None:
        """It is not asked for again until it changes."""
        with self._lock:
            is_new = found.mark not in self._wrong
            self._wrong[found.mark] = None
            if len(self._wrong) > MOST_WRONG:
                del self._wrong[next(iter(self._wrong))]
        if is_new:
            log.warning("a file in a Hugging Face cache is not what its name says", extra={"path": found.path, "why": why})

    def _candidates(self, name: str, size: int, held: ExitStack) -> Iterator[Found]:
        for cache, repository in self._where(name):
            path = f"{cache}/{repository}/blobs/{name}"
            try:
                fd = _open_blob(cache, repository, name)
                held.callback(os.close, fd)
                seen = os.fstat(fd)
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO):
                    log.info("a file in a Hugging Face cache cannot be read", extra={"path": path, "why": error.strerror})
                continue
            found = Found(path, fd, (seen.st_dev, seen.st_ino, seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns))
            if not stat.S_ISREG(seen.st_mode) or found.mark in self._wrong:
                continue
            if seen.st_size != size:
                self.wrong(found, f"it has {seen.st_size:,} bytes of {size:,}")
                continue
            yield found

    def _where(self, name: str) -> Sequence[tuple[str, str]]:
        """The caches and repositories that list it, as they were moments ago."""
        with self._lock:
            now = self._clock()
            if self._listed_at is None or now - self._listed_at > LISTED_S:
                self._places = {}
                for count, (cache, repository, listed) in enumerate(self._listing()):
                    if count >= MOST_LISTED:
                        log.warning("Hugging Face caches hold more than is looked through", extra={"files": MOST_LISTED})
                        break
                    self._places.setdefault(listed, []).append((cache, repository))
                self._listed_at = self._clock()
            return self._places.get(name, ())

    def _listing(self) -> Iterator[tuple[str, str, str]]:
        for cache in self._folders:
            for repository in filter(_REPOSITORY.match, _names(cache)):
                for name in filter(_NAME.match, _names(cache, repository, "blobs")):
                    yield cache, repository, name


def _names(cache: str, *below: str) -> Iterator[str]:
    """What lies in a folder below a cache; nothing where it cannot be read."""
    with contextlib.suppress(OSError), _folder(cache, *below) as fd, os.scandir(fd) as entries:
        for entry in entries:
            yield entry.name


@contextmanager
def _folder(cache: str, *below: str) -> Iterator[int]:
    fd = os.open(cache, _FOLDER & ~os.O_NOFOLLOW)
    try:
        for name in below:
            above, fd = fd, os.open(name, _FOLDER, dir_fd=fd)
            os.close(above)
        yield fd
    finally:
        os.close(fd)


def _open_blob(cache: str, repository: str, name: str) -> int:
    with _folder(cache, repository, "blobs") as blobs:
        try:
            return os.open(name, _FILE, dir_fd=blobs)
        except OSError as error:
            if error.errno != errno.ELOOP or (shared := _SHARED.match(os.readlink(name, dir_fd=blobs))) is None:
                raise
    with _folder(cache, "blobs", shared[1]) as blobs:
        return os.open(shared[2], _FILE, dir_fd=blobs)
