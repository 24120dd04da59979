"""How a request reaches the daemon: the port, the rules for reading answers, the in-memory twin.

A `Transport` opens `Channel`s. A channel is one connection: one thread at a time asks on it, any thread may `abort` it,
and its end tells the daemon that whoever asked is gone. Every wait has a deadline, in seconds of `time.monotonic`.
Whatever goes wrong is a `HotshelfError`: `DaemonUnavailable` when nobody answers or the answer breaks off, `Timeout` when
the deadline passes, the daemon's own problem when it says one.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

from hotshelf_shared.errors import (
    BY_CODE,
    DaemonUnavailable,
    HotshelfError,
    InvalidRequest,
    NotFound,
    Timeout,
    from_problem,
)
from hotshelf_shared.manifest import parse_json
from hotshelf_shared.wire import CODE_HEADER

#: The longest answer or NDJSON line that is read. The largest honest one is a lease on 50,000 files, some 10 MB.
MAX_ANSWER_BYTES = 64 << 20

_SKEW = "Client and daemon are of different versions, or something else listens there."


class Channel(Protocol):
    """One connection to the daemon."""

    def ask(self, method: str, path: str, body: object = None, *, deadline: float) -> Any:
        """One request, one JSON answer (None when it is empty)."""

    def events(self, method: str, path: str, body: object, *, deadline: float) -> Iterator[dict[str, Any]]:
        """One request, a stream of events of which the last is ``ready``; an ``error`` event is raised."""

    def head(self, path: str, *, deadline: float) -> Mapping[str, str] | None:
        """The headers, named in lower case, of what lies there; None when nothing does."""

    def upload(self, path: str, fd: int, size: int, *, deadline: float) -> int:
        """PUTs the first `size` bytes of a file; the status of a good answer. The daemon may answer before it has them."""

    def abort(self) -> None:
        """Ends the connection under whoever waits on it; callable from any thread."""

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None:
        """Closes it."""


class Transport(Protocol):
    """Where the daemon is and how to get there. `address` names it in messages."""

    @property
    def address(self) -> str: ...

    def connect(self, deadline: float) -> Channel:
        """Raises DaemonUnavailable or AccessDenied."""


def ask(transport: Transport, method: str, path: str, body: object = None, *, deadline: float) -> Any:
    """One request on a connection of its own."""
    with transport.connect(deadline) as channel:
        return channel.ask(method, path, body, deadline=deadline)


def encode(body: object) -> bytes | None:
    """A request's body. Raises InvalidRequest when the caller gave what JSON cannot say."""
    try:
        return None if body is None else json.dumps(body).encode()
    except (TypeError, ValueError) as error:
        raise InvalidRequest(f"the request is not JSON: {error}") from error


def read_answer(status: int, data: bytes, what: str) -> Any:
    """The JSON of an answer. Raises what a problem stands for; `what` names the request in messages."""
    if len(data) > MAX_ANSWER_BYTES:
        raise HotshelfError(f"the answer to {what} is over {MAX_ANSWER_BYTES:,} bytes", hint=_SKEW)
    if status < 400:
        return parse_json(data, f"the answer to {what}", HotshelfError) if data.strip() else None
    try:
        problem = json.loads(data)
    except (ValueError, RecursionError):
        problem = None
    if isinstance(problem, dict) and "code" in problem:
        raise from_problem(problem)
    raise HotshelfError(f"{what} was answered {status}, without saying why", hint=_SKEW)


def check_head(status: int, headers: Mapping[str, str], what: str) -> Mapping[str, str] | None:
    """What an answer without a body says: the headers, None for not found; else raises what its code stands for."""
    if status < 400:
        return headers
    code = headers.get(CODE_HEADER.lower())
    if code == NotFound.code:
        return None
    if code is not None:
        raise from_problem({"code": code, "retryable": BY_CODE.get(code, HotshelfError).retryable})
    raise HotshelfError(f"{what} was answered {status}, without saying why", hint=_SKEW)


def read_events(lines: Iterable[bytes], what: str) -> Iterator[dict[str, Any]]:
    """The events of an NDJSON stream, up to and with ``ready``. A stream that just ends is a daemon that went away."""
    for line in lines:
        if not line.strip():
            continue
        event = parse_json(line, f"a line of the answer to {what}", HotshelfError)
        if not isinstance(event, dict):
            raise HotshelfError(f"a line of the answer to {what} is no event", hint=_SKEW)
        if event.get("event") == "error":
            problem = event.get("problem")
            raise from_problem(problem if isinstance(problem, dict) else {})
        yield event
        if event.get("event") == "ready":
            return
    raise DaemonUnavailable(f"the answer to {what} broke off")


@dataclass(frozen=True, slots=True)
class Request:
    """What the in-memory twin hands to its handler; `left_s` is what was left until the deadline, `data` an upload."""

    method: str
    path: str
    body: Any
    left_s: float
    data: bytes | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """`body` is JSON-able; for a stream, `lines` are JSON-able events (or bytes, to be malformed on purpose)."""

    body: object = None
    status: int = 200
    lines: Iterable[object] = ()
    headers: Mapping[str, str] = field(default_factory=dict)


class MemoryTransport:
    """The twin without a socket: requests go to `handler`. `up` False is a daemon that is not there."""

    def __init__(self, handler: Callable[[Request], Reply], *, address: str = "memory:") -> None:
        self.handler, self.address, self.up = handler, address, True

    def connect(self, deadline: float) -> MemoryChannel:  # noqa: ARG002 - the port's; nothing here takes time
        if not self.up:
            raise DaemonUnavailable(f"no daemon answers on {self.address}")
        return MemoryChannel(self)


class MemoryChannel:
    """A connection to a handler. It carries JSON both ways, so that what passes here passes the real one."""

    def __init__(self, transport: MemoryTransport) -> None:
        self._transport, self._open = transport, True

    def ask(self, method: str, path: str, body: object = None, *, deadline: float) -> Any:
        reply = self._send(method, path, body, deadline)
        return read_answer(reply.status, encode(reply.body) or b"", f"{method} {path}")

    def events(self, method: str, path: str, body: object, *, deadline: float) -> Iterator[dict[str, Any]]:
        reply, what = self._send(method, path, body, deadline), f"{method} {path}"
        if reply.status >= 400:
            read_answer(reply.status, encode(reply.body) or b"", what)
        yield from read_events(self._lines(reply, deadline, what), what)

    def head(self, path: str, *, deadline: float) -> Mapping[str, str] | None:
        reply = self._send("HEAD", path, None, deadline)
        headers = {name.lower(): value for name, value in reply.headers.items()}
        return check_head(reply.status, headers, f"HEAD {path}")

    def upload(self, path: str, fd: int, size: int, *, deadline: float) -> int:
        data = os.pread(fd, size, 0)
        if len(data) < size:
            raise InvalidRequest(f"the file ended after {len(data):,} of {size:,} bytes")
        reply = self._send("PUT", path, None, deadline, data)
        read_answer(reply.status, encode(reply.body) or b"", f"PUT {path}")
        return reply.status

    def _lines(self, reply: Reply, deadline: float, what: str) -> Iterator[bytes]:
        for line in reply.lines:
            if not self._open or not self._transport.up:
                return
            if time.monotonic() >= deadline:
                raise Timeout(f"{what} was not answered in time")
            yield line if isinstance(line, bytes) else encode(line) or b"null"

    def _send(self, method: str, path: str, body: object, deadline: float, data: bytes | None = None) -> Reply:
        if not self._open or not self._transport.up:
            raise DaemonUnavailable(f"the connection to {self._transport.address} is closed")
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise Timeout(f"{method} {path} was not answered in time")
        return self._transport.handler(Request(method, path, json.loads(encode(body) or b"null"), left_s, data))

    def abort(self) -> None:
        self._open = False

    def close(self) -> None:
        self._open = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
