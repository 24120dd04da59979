"""Mirrors of an origin, asked before it, unsigned, for what bears its digest in its name, and believed in nothing: a decorator
of the port.

What is mutable is asked of the origin itself. A mirror that has not got something, or answers oddly, is passed over for that;
one that is away rests; one that gave wrong bytes rests for long. Who comes to know that bytes are wrong says so.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TypeVar
from urllib.parse import quote, urlsplit

from hotshelf_daemon.config import OriginSettings, Settings
from hotshelf_daemon.objects import Checksum, OriginObject
from hotshelf_daemon.origin import https
from hotshelf_daemon.origin.port import Body, Origin, SplicedBody
from hotshelf_daemon.origin.web import Terms, Web, place
from hotshelf_shared.digest import Digest
from hotshelf_shared.errors import AccessDenied, IntegrityError, NotFound, OriginUnavailable

log = logging.getLogger(__name__)
T = TypeVar("T")
_BLOB = re.compile(r"(.*/)?blobs/sha256/[0-9a-f]{64}\Z", re.DOTALL)
_MANIFEST = re.compile(r"(?:.*/)?manifests/([0-9a-f]{64})\.json\Z", re.DOTALL)
#: How long a mirror is not asked: for what it had not got, for anything when it was away, and when it had lied.
PASSED_OVER_S = 60.0
AWAY_S = 30.0
LIED_S = 600.0
#: What brings less than so many bytes a second for so long is as good as away. One connection of a slow link brings more.
SLOW_RATE = 32 << 10
SLOW_S = 10.0
#: A reader that stayed away for so long may have been given up.
LEFT_S = 5.0
#: Objects of which is known who gave some of it, or has not got it.
MOST_KNOWN = 4096
#: What may be wrong with one answer, and says little of the next.
_ODD = (NotFound, AccessDenied, IntegrityError)


class MirrorOrigin:
    """One way to one mirror: what it serves under `url_of(key)`. Nothing that is mutable is asked of it."""

    def __init__(self, name: str, web: Web, url_of: Callable[[str], str]) -> None:
        self.name, self.label = name, web.label
        self._web, self._url_of = web, url_of

    def head(self, key: str) -> OriginObject | None:
        return self._web.head(self._url_of(key), key)

    def checksum(self, _obj: OriginObject) -> Checksum | None:
        return None

    def list(self, folder: str) -> Iterator[OriginObject]:
        raise NotFound(f"a mirror is not asked what lies below {folder!r}")

    def read(self, key: str, limit: int) -> bytes | None:
        return self._web.read(self._url_of(key), limit)

    def open(self, obj: OriginObject, start: int, stop: int) -> AbstractContextManager[Body]:
        return self._web.open(self._url_of(obj.key), obj, start, stop)

    def told(self, key: str) -> Mapping[str, str] | None:
        """The headers, in small letters, that come with its first byte; None where it is not there."""
        return self._web.told(self._url_of(key))


def ways_to(mirror: str, bucket: str, origin: OriginSettings, settings: Settings) -> Iterator[MirrorOrigin]:
    """Where a mirror may keep a bucket's objects: as it says itself (`{bucket}`, `{key}`), or below the bucket's name, as S3
    does, or right at its root, as a domain of one bucket does."""
    forms = (mirror,) if "{key}" in mirror else (f"{mirror.rstrip('/')}/{{bucket}}/{{key}}", f"{mirror.rstrip('/')}/{{key}}")
    bases = [form.replace("{bucket}", quote(bucket, safe="")) for form in forms]
    own = place(bases[0])

    def terms_for(url: str) -> Terms | None:
        if place(url) in (own, ("https", own[1], 443)):  # itself, or its TLS
            return Terms(origin.mirrors_ca_bundle)
        return https.terms_for(url, settings)

    web = Web(urlsplit(bases[0]).netloc, settings, terms_for, connections=origin.max_connections)
    for base in bases:
        yield MirrorOrigin(base, web, lambda key, base=base: base.replace("{key}", quote(key, safe="/~")))  # type: ignore[misc]


class _Watched:
    """A mirror's body: how long its bytes were waited for, and whether the reader itself let it wait."""

    def __init__(self, body: Body, clock: Callable[[], float]) -> None:
        self._body, self._clock = body, clock
        self._left_at = clock()
        self._read_s, self._bytes = 0.0, 0
        self.was_left = False

    def readinto(self, buffer: memoryview, /) -> int:
        return self._timed(lambda: self._body.readinto(buffer))

    def _timed(self, read: Callable[[], int]) -> int:
        """Raises OriginUnavailable when it is so slow that its origin is the better one to wait for."""
        began = self._clock()
        self.was_left = began - self._left_at > LEFT_S
        taken = read()
        self._left_at = self._clock()
        self._read_s, self._bytes = self._read_s + self._left_at - began, self._bytes + taken
        if self._read_s > SLOW_S:
            if self._bytes < SLOW_RATE * self._read_s:
                raise OriginUnavailable(f"it brought {self._bytes / self._read_s:,.0f} bytes a second")
            self._read_s, self._bytes = 0.0, 0
        return taken


class _WatchedSplicedBody(_Watched):
    def __init__(self, body: SplicedBody, clock: Callable[[], float]) -> None:
        super().__init__(body, clock)
        self._splice = body.splice

    def splice(self, pipe: int, most: int, /) -> int:
        return self._timed(lambda: self._splice(pipe, most))


class _Mirror:
    """The ways to one mirror, the one that led somewhere first, and what is known of it."""

    def __init__(self, ways: Sequence[Origin], clock: Callable[[], float]) -> None:
        self.label = ways[0].label
        self._ways, self._clock = tuple(ways), clock
        self._is_known = len(ways) == 1
        self._rests_until = clock()
        self._passed_over = OrderedDict[str, float]()
        self._gave = OrderedDict[str, float]()
        self._lock = threading.Lock()

    def asked(self, key: str, ask: Callable[[Origin], T | None]) -> T | None:
        """What it answers for this object; None while it rests, or when it has not got it as it should be."""
        with self._lock:
            now = self._clock()
            if now < self._rests_until or now < self._passed_over.get(key, now):
                return None
            ways = self._ways[:1] if self._is_known else self._ways
        for way in ways:
            try:
                answer = ask(way)
            except OriginUnavailable as error:
                self.broke(error)
                return None
            except _ODD:
                continue
            if answer is not None:
                self._served(way, key, now)
                return answer
        with self._lock:
            _note(self._passed_over, key, now + PASSED_OVER_S)
        return None

    def _served(self, way: Origin, key: str, now: float) -> None:
        with self._lock:
            self._ways = (way, *(other for other in self._ways if other is not way))
            self._is_known = True
            _note(self._gave, key, now)

    def broke(self, error: BaseException | None, body: _Watched | None = None) -> None:
        """A reader that stayed away may have been given up by it, and says nothing of it."""
        if isinstance(error, OriginUnavailable) and not (body is not None and body.was_left):
            self._rest(error.retry_after_s or AWAY_S, error.message)

    def lied(self, key: str) -> bool:
        """Whether it gave some of it; then it rests, and another way to it is tried first."""
        with self._lock:
            gave = self._gave.pop(key, None) is not None
            if gave:
                self._ways, self._is_known = (*self._ways[1:], self._ways[0]), len(self._ways) == 1
        if gave:
            self._rest(LIED_S, f"it served wrong bytes for {key}")
        return gave

    def _rest(self, seconds: float, why: str) -> None:
        with self._lock:
            now = self._clock()
            begins, self._rests_until = now >= self._rests_until, max(self._rests_until, now + seconds)
        if begins:
            log.warning("a mirror is not asked for a while", extra={"mirror": self.label, "seconds": seconds, "why": why})


def _note(known: OrderedDict[str, float], key: str, at: float) -> None:
    known[key] = at
    known.move_to_end(key)
    while len(known) > MOST_KNOWN:
        known.popitem(last=False)


class Mirrored:
    """`mirrors` in the order in which they are asked, each by its ways."""

    def __init__(
        self, origin: Origin, mirrors: Iterable[Sequence[Origin]], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.itself = origin
        self.name, self.label = origin.name, origin.label
        self._clock = clock
        self._mirrors = [_Mirror(ways, clock) for ways in mirrors]

    def head(self, key: str) -> OriginObject | None:
        return self.itself.head(key)

    def checksum(self, obj: OriginObject) -> Checksum | None:
        return self.itself.checksum(obj)

    def list(self, folder: str) -> Iterator[OriginObject]:
        return self.itself.list(folder)

    def read(self, key: str, limit: int) -> bytes | None:
        """A manifest, by the digest in its name, from whoever has it; all else from the origin."""
        if named := _MANIFEST.match(key):
            for mirror in self._mirrors:
                if (data := mirror.asked(key, lambda way: _right(way.read(key, limit), named[1]))) is not None:
                    return data
        return self.itself.read(key, limit)

    @contextmanager
    def open(self, obj: OriginObject, start: int, stop: int) -> Iterator[Body]:
        """From the first that has it. What breaks off is taken up by whoever reads: that mirror rests by then."""
        with ExitStack() as held:
            yield self._opened(held, obj, start, stop)

    def _opened(self, held: ExitStack, obj: OriginObject, start: int, stop: int) -> Body:
        for mirror in self._mirrors if _BLOB.match(obj.key) and not obj.version else ():
            body = mirror.asked(obj.key, lambda way: held.enter_context(way.open(obj, start, stop)))
            if body is not None:
                watched = _Watched(body, self._clock)
                if isinstance(body, SplicedBody):
                    watched = _WatchedSplicedBody(body, self._clock)
                held.push(lambda _kind, error, _trace, mirror=mirror, watched=watched: mirror.broke(error, watched))
                return watched
        return held.enter_context(self.itself.open(obj, start, stop))

    def lied(self, key: str) -> tuple[str, ...]:
        """Its bytes were wrong: whoever gave some of them is not asked for long. Their labels."""
        return tuple(mirror.label for mirror in self._mirrors if mirror.lied(key))


def _right(data: bytes | None, hex_digest: str) -> bytes | None:
    """Raises IntegrityError where it is not what it is named by: so it is nothing that this way gave."""
    if data is not None and Digest.of(data).hex != hex_digest:
        raise IntegrityError("a manifest is not what its name says")
    return data


def itself(origin: Origin) -> Origin:
    """The origin without its mirrors."""
    return origin.itself if isinstance(origin, Mirrored) else origin
