"""The transport over hotshelfd's Unix socket: http.client on a connection with one deadline per request.

Invariants: no wait outlives its deadline, however slowly the bytes drip; no connection survives a fork into the child,
where it would keep the daemon from noticing that the parent died.
"""

from __future__ import annotations

import http.client
import math
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Self

from hotshelf.transport import MAX_ANSWER_BYTES, check_head, encode, read_answer, read_events
from hotshelf_shared import __version__
from hotshelf_shared.errors import AccessDenied, BadConfiguration, DaemonUnavailable, HotshelfError, InvalidRequest, Timeout
from hotshelf_shared.wire import AGENT, BYTES, JSON, NDJSON

#: `sockaddr_un.sun_path` holds 108 bytes, the last of them NUL (unix(7)).
MAX_SOCKET_PATH_BYTES = 107
#: How long a daemon may take to say that it wants a body, or that it does not, before it is sent all the same.
GO_AHEAD_S = 10.0
SEND_BYTES = 1 << 20
#: So that a daemon of another version can say so, when it does not understand.
USER_AGENT = f"{AGENT}{__version__}"


class UnixTransport:
    """Connects to the socket at `address`."""

    def __init__(self, address: str) -> None:
        self.address = address
        if (length := len(os.fsencode(address))) > MAX_SOCKET_PATH_BYTES or not address:
            raise BadConfiguration(
                f"the socket path is {length} bytes long; Linux allows 1 to {MAX_SOCKET_PATH_BYTES}: {address[:120]!r}",
                hint="Set HOTSHELF_SOCKET (and the daemon's `socket`) to a shorter path.",
            )

    def connect(self, deadline: float) -> UnixChannel:
        channel = UnixChannel(self.address)
        try:
            channel.open(deadline)
        except PermissionError as error:
            channel.close()
            raise AccessDenied(
                f"may not connect to {self.address}: {error.strerror}",
                hint="Run with the socket's group as a supplementary group (fsGroup in a pod, --group-add in a container).",
            ) from error
        except OSError as error:
            channel.close()
            raise DaemonUnavailable(f"no daemon answers on {self.address}: {error.strerror or error}") from error
        return channel


class UnixChannel:
    """One connection. `http.client` may close it after an answer; asking again then is DaemonUnavailable."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._socket = _DeadlineSocket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._http = http.client.HTTPConnection("hotshelf")
        self._http.sock = self._socket
        self._http.auto_open = 0  # never falls back to a TCP connection of its own
        _open.add(self)

    def open(self, deadline: float) -> None:
        self._socket.deadline = deadline
        self._socket.arm()
        self._socket.connect(self._address)

    def ask(self, method: str, path: str, body: object = None, *, deadline: float) -> Any:
        what = f"{method} {path}"
        with self._translated(what):
            response = self._send(method, path, body, deadline, accept=JSON)
            return read_answer(response.status, _read(response), what)

    def events(self, method: str, path: str, body: object, *, deadline: float) -> Iterator[dict[str, Any]]:
        what = f"{method} {path}"
        with self._translated(what):
            response = self._send(method, path, body, deadline, accept=NDJSON)
            if response.status >= 400:
                read_answer(response.status, _read(response), what)
        yield from read_events(self._lines(response, what), what)

    def head(self, path: str, *, deadline: float) -> Mapping[str, str] | None:
        what = f"HEAD {path}"
        with self._translated(what):
            response = self._send("HEAD", path, None, deadline, accept=JSON)
            response.read()
            return check_head(response.status, {name.lower(): value for name, value in response.getheaders()}, what)

    def upload(self, path: str, fd: int, size: int, *, deadline: float) -> int:
        what = f"PUT {path}"
        with self._translated(what):
            self._socket.deadline = deadline
            self._http.putrequest("PUT", path, skip_accept_encoding=True)
            for name, value in (("Content-Type", BYTES), ("Content-Length", str(size)), ("Expect", "100-continue")):
                self._http.putheader(name, value)
            self._http.putheader("User-Agent", USER_AGENT)
            self._http.endheaders()
            with suppress(BrokenPipeError, ConnectionResetError):  # refused half-way: the answer says why
                if self._is_awaited():
                    self._pour(fd, size)
            response = self._http.getresponse()
            read_answer(response.status, _read(response), what)
            return response.status

    def _is_awaited(self) -> bool:
        """Whether the body is to be sent: the daemon said so, or says nothing. A refusal is left for `getresponse`."""
        self._socket.arm(GO_AHEAD_S)
        try:
            said = self._socket.recv(64, socket.MSG_PEEK)
        except TimeoutError:
            return True
        return b" 100 " in said[:16]

    def _pour(self, fd: int, size: int) -> None:
        buffer, at = memoryview(bytearray(min(SEND_BYTES, size))), 0
        while at < size:
            got = os.preadv(fd, [buffer[: size - at]], at)
            if not got:
                raise InvalidRequest(f"the file ended after {at:,} of {size:,} bytes", hint="It was changed while it was sent.")
            self._socket.sendall(buffer[:got])
            at += got

    def _lines(self, response: http.client.HTTPResponse, what: str) -> Iterator[bytes]:
        while True:
            with self._translated(what):
                line = response.readline(MAX_ANSWER_BYTES + 1)
            if not line:
                return
            if len(line) > MAX_ANSWER_BYTES:
                raise HotshelfError(f"a line of the answer to {what} is over {MAX_ANSWER_BYTES:,} bytes")
            yield line

    def _send(self, method: str, path: str, body: object, deadline: float, *, accept: str) -> http.client.HTTPResponse:
        self._socket.deadline = deadline
        data = encode(body)
        headers = {"Accept": accept, "User-Agent": USER_AGENT}
        if data is not None:
            headers["Content-Type"] = JSON
        self._http.request(method, path, body=data, headers=headers)
        return self._http.getresponse()

    @contextmanager
    def _translated(self, what: str) -> Iterator[None]:
        """The one place where foreign errors become ours."""
        try:
            yield
        except TimeoutError as error:
            self.close()
            raise Timeout(f"{what} was not answered in time on {self._address}") from error
        except (OSError, ValueError, http.client.HTTPException) as error:
            # ValueError is what a closed file says: another thread aborted the wait.
            self.close()
            raise DaemonUnavailable(f"the connection to {self._address} broke off during {what}: {error!r}") from error

    def abort(self) -> None:
        with suppress(OSError):  # already closed: nobody waits on it any more
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        _open.discard(self)
        self.abort()  # http.client's response may still hold the descriptor open; the peer is to see the end now
        self._http.close()

    def forget(self) -> None:
        """Closes this process's descriptor and leaves the connection, which a parent still uses, alone."""
        os.close(self._socket.detach())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _DeadlineSocket(socket.socket):
    """Each operation gets what is left until `deadline`, so that a dripping peer cannot stretch it."""

    deadline = 0.0

    def arm(self, most_s: float = math.inf) -> None:
        left_s = self.deadline - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("the deadline passed")
        self.settimeout(min(left_s, most_s))

    def recv_into(self, *args: Any) -> int:
        self.arm()
        return super().recv_into(*args)

    def sendall(self, *args: Any) -> None:
        self.arm()
        super().sendall(*args)


def _read(response: http.client.HTTPResponse) -> bytes:
    data = response.read(MAX_ANSWER_BYTES + 1)
    if len(data) <= MAX_ANSWER_BYTES and response.length:
        raise http.client.IncompleteRead(data, response.length)  # read(n) leaves noticing that to us
    return data


_open: set[UnixChannel] = set()


def _forget_all() -> None:
    while _open:
        with suppress(OSError):  # it was being closed when the fork happened
            _open.pop().forget()


os.register_at_fork(after_in_child=_forget_all)
