"""What the recorder can do to an exchange, and to which: the scripted misfortunes of tests."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qs, unquote, urlsplit

from tests.servers.http_stream import Head


@dataclass(slots=True)
class Exchange:
    """One request and what became of it. `body_bytes` counts payload bytes of the answer handed to the client's socket."""

    method: str
    target: str
    bucket: str
    key: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    at: float = field(default_factory=time.monotonic)
    status: int | None = None
    body_bytes: int = 0
    complete: bool = False

    @classmethod
    def of(cls, head: Head) -> Exchange:
        """Header names in lower case; bucket and key from a path-style target, or from a host `BUCKET.localhost`."""
        method, target = head.first[0], head.first[1]
        parts = urlsplit(target)
        path = unquote(parts.path).removeprefix("/")
        host = (head.get("host") or "").partition(":")[0]
        bucket, _, key = path.partition("/")
        if host.endswith(".localhost"):
            bucket, key = host.removesuffix(".localhost"), path
        query = {name: values[0] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
        return cls(method, target, bucket, key, query, {name.lower(): value for name, value in head.headers})

    @property
    def range(self) -> tuple[int, int] | None:
        """First and last byte asked for; None for all of it, or for a form other than bytes=A-B."""
        first, dash, last = self.headers.get("range", "").removeprefix("bytes=").partition("-")
        return (int(first), int(last)) if dash and first.isdigit() and last.isdigit() else None

    @property
    def is_object_read(self) -> bool:
        return self.method == "GET" and bool(self.key) and self.status in (200, 206)


@dataclass(slots=True, eq=False)
class Fault:
    """Applies to exchanges of `method` whose key starts with `prefix`, `times` times (None: always)."""

    prefix: str = ""
    method: str | None = "GET"
    times: int | None = None

    def meets(self, exchange: Exchange) -> bool:
        return (
            self.times != 0
            and self.method in (None, exchange.method)
            and bool(exchange.key)
            and exchange.key.startswith(self.prefix)
        )


@dataclass(slots=True, eq=False)
class Answer(Fault):
    """This instead of asking the origin."""

    status: int = 503
    body: bytes = b""
    extra: Mapping[str, str] = field(default_factory=dict)

    def render(self) -> bytes:
        headers = {"Content-Length": str(len(self.body)), "Content-Type": "application/xml", **self.extra}
        lines = [f"HTTP/1.1 {self.status} Scripted", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
        return "\r\n".join(lines).encode("latin-1")


@dataclass(slots=True, eq=False)
class Before(Fault):
    """Calls `act` before the request goes to the origin."""

    act: Callable[[Exchange], None] = lambda _exchange: None


@dataclass(slots=True, eq=False)
class Amend(Fault):
    """Calls `act`, which may change the head of the origin's answer."""

    act: Callable[[Head], None] = lambda _head: None


@dataclass(slots=True, eq=False)
class Cut(Fault):
    """Ends the connection after so many bytes of the answer's body; with a reset, or as if all were well."""

    after_bytes: int = 0
    reset: bool = True


@dataclass(slots=True, eq=False)
class Stall(Fault):
    """Goes quiet after so many bytes of the answer's body, until resumed."""

    after_bytes: int = 0
    over: threading.Event = field(default_factory=threading.Event)


class Rate:
    """A limit on bytes per second over everything that passes; None is no limit."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._per_s: float | None = None
        self._free_at = 0.0

    def set(self, bytes_per_s: float | None) -> None:
        with self._lock:
            self._per_s, self._free_at = bytes_per_s, time.monotonic()

    @property
    def piece(self) -> int:
        """How many bytes to send at once, so that the limit holds within a twentieth of a second."""
        per_s = self._per_s
        return 1 << 18 if per_s is None else max(1, min(1 << 18, int(per_s / 20)))

    def delay(self, count: int) -> float:
        """How long to wait before sending `count` bytes more."""
        with self._lock:
            if self._per_s is None:
                return 0.0
            now = time.monotonic()
            start = max(self._free_at, now)
            self._free_at = start + count / self._per_s
            return self._free_at - now
