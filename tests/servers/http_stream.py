"""HTTP/1.1 over a plain socket, as a proxy needs it: heads kept byte for byte, bodies pumped without being collected."""

from __future__ import annotations

import socket
from collections.abc import Callable

MAX_HEAD_BYTES = 1 << 16
PUMP_BYTES = 1 << 18

#: Takes some bytes of a body; the second argument says whether they are payload (and not chunk framing).
Sink = Callable[[memoryview, bool], None]


class Broken(ConnectionError):
    """The other end went away in the middle of a message."""


class Head:
    """A request's or a response's first line and headers. `bytes(head)` is what was read, unless it was changed."""

    def __init__(self, raw: bytes) -> None:
        first, *rest = raw.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
        self.first = first.split(" ", 2)
        self.headers = [(name, value.strip()) for name, _, value in (line.partition(":") for line in rest)]
        self._read, self._as_read = raw, (list(self.first), list(self.headers))

    def __bytes__(self) -> bytes:
        if (self.first, self.headers) == self._as_read:
            return self._read
        lines = [" ".join(self.first), *(f"{name}: {value}" for name, value in self.headers), "", ""]
        return "\r\n".join(lines).encode("latin-1")

    def get(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)

    def set(self, name: str, value: str | None) -> None:
        """Replaces a header; None removes it."""
        self.headers = [(key, old) for key, old in self.headers if key.lower() != name.lower()]
        if value is not None:
            self.headers.append((name, value))

    @property
    def chunked(self) -> bool:
        return "chunked" in (self.get("transfer-encoding") or "").lower()

    @property
    def length(self) -> int | None:
        text = self.get("content-length")
        return None if text is None or self.chunked else int(text)

    @property
    def closes(self) -> bool:
        return "close" in (self.get("connection") or "").lower() or "HTTP/1.0" in self.first


class Stream:
    """One end of a connection, with what was read from it but not yet used."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = sock
        self._buffer = bytearray()
        self._room = bytearray(PUMP_BYTES)

    def read_head(self) -> Head | None:
        """None when the other end closed before saying anything. Raises Broken in the middle of a head."""
        while (end := self._buffer.find(b"\r\n\r\n")) < 0:
            if len(self._buffer) > MAX_HEAD_BYTES:
                raise Broken("a head without an end")
            if not (data := self.socket.recv(1 << 14)):
                if self._buffer:
                    raise Broken("closed within a head")
                return None
            self._buffer += data
        raw = bytes(self._buffer[: end + 4])
        del self._buffer[: end + 4]
        return Head(raw)

    def _take(self, at_most: int) -> memoryview:
        """Some bytes, at least one. Raises Broken at the end."""
        if self._buffer:
            got = min(at_most, len(self._buffer), PUMP_BYTES)
            self._room[:got] = self._buffer[:got]
            del self._buffer[:got]
        else:
            got = self.socket.recv_into(self._room, min(at_most, PUMP_BYTES))
            if not got:
                raise Broken("closed within a body")
        return memoryview(self._room)[:got]

    def _pump_exactly(self, count: int, sink: Sink, *, payload: bool) -> None:
        while count:
            piece = self._take(count)
            count -= len(piece)
            sink(piece, payload)

    def _pump_line(self, sink: Sink) -> bytes:
        line = bytearray()
        while not line.endswith(b"\r\n"):
            line += self._take(1)
        sink(memoryview(line), False)
        return bytes(line[:-2])

    def pump_body(self, head: Head, sink: Sink, *, until_close: bool) -> None:
        """All of the body that `head` announces; without an announcement, nothing, or everything `until_close`."""
        if head.chunked:
            while size := int(self._pump_line(sink).partition(b";")[0], 16):
                self._pump_exactly(size, sink, payload=True)
                self._pump_line(sink)
            while self._pump_line(sink):
                pass
        elif head.length is not None:
            self._pump_exactly(head.length, sink, payload=True)
        elif until_close:
            while True:
                try:
                    piece = self._take(PUMP_BYTES)
                except Broken:
                    return
                sink(piece, True)
