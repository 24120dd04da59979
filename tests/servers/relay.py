"""One client's connection through a recorder: requests handed on byte for byte, answers counted and, if so scripted, spoilt."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Callable

from tests.servers.book import Book
from tests.servers.faults import Amend, Answer, Before, Cut, Exchange, Stall
from tests.servers.http_stream import Broken, Head, Stream

#: Connects to the origin; the socket is closed with the relay.
Connect = Callable[[], socket.socket]


class CutOff(Exception):
    """The recorder itself ended this connection."""


def reset(sock: socket.socket) -> None:
    """Closing this socket will look like a reset to its peer."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


class Relay:
    """`run` returns, or raises OSError or CutOff, when the connection is over."""

    def __init__(self, book: Book, client: Stream, connect: Connect) -> None:
        self._book, self._client, self._connect = book, client, connect
        self._origin: Stream | None = None

    def run(self) -> None:
        while (request := self._client.read_head()) is not None:
            if not self._exchange(request):
                return

    def _exchange(self, request: Head) -> bool:
        """Whether the connection lives on."""
        exchange = Exchange.of(request)
        self._book.enter(exchange)
        if before := self._book.due(Before, exchange):
            before.act(exchange)
        if answer := self._book.due(Answer, exchange):
            self._swallow(request)
            self._book.note(exchange, status=answer.status, complete=True)
            self._client.socket.sendall(answer.render() + (b"" if exchange.method == "HEAD" else answer.body))
            return not request.closes
        origin, head = self._ask(request)
        if amend := self._book.due(Amend, exchange):
            amend.act(head)
        bodyless = exchange.method == "HEAD" or head.first[1] in ("204", "304") or head.length == 0
        self._book.note(exchange, status=int(head.first[1]), complete=bodyless)
        self._client.socket.sendall(bytes(head))
        if not bodyless:
            self._spoil_or_send(origin, head, exchange)
            self._book.note(exchange, complete=True)
        return not (request.closes or head.closes or (not bodyless and head.length is None and not head.chunked))

    def _ask(self, request: Head) -> tuple[Stream, Head]:
        """The origin's connection and the head of its final answer. An idle connection that died is replaced once."""
        reused, bodyless = self._origin is not None, not request.chunked and not request.length
        try:
            return self._ask_once(request)
        except OSError:
            self._origin = None
            if not (reused and bodyless):
                reset(self._client.socket)
                raise
        try:
            return self._ask_once(request)
        except OSError:
            reset(self._client.socket)
            raise

    def _ask_once(self, request: Head) -> tuple[Stream, Head]:
        origin = self._origin = self._origin or Stream(self._connect())
        origin.socket.sendall(bytes(request))
        self._continue(request)
        refused = False

        def forward(piece: memoryview, _payload: bool) -> None:
            nonlocal refused
            if not refused:
                try:
                    origin.socket.sendall(piece)
                except OSError:  # it may have answered early and closed: the answer tells
                    refused = True

        self._client.pump_body(request, forward, until_close=False)
        while (head := origin.read_head()) is not None:
            if not head.first[1].startswith("1"):
                return origin, head
        raise Broken("the origin closed without an answer")

    def _continue(self, request: Head) -> None:
        if (request.get("expect") or "").lower() == "100-continue":
            self._client.socket.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _swallow(self, request: Head) -> None:
        self._continue(request)
        self._client.pump_body(request, lambda _piece, _payload: None, until_close=False)

    def _spoil_or_send(self, origin: Stream, head: Head, exchange: Exchange) -> None:
        cut, stall = self._book.due(Cut, exchange), self._book.due(Stall, exchange)

        def send(piece: memoryview, payload: bool) -> None:
            while payload and len(piece):
                count = min(len(piece), self._book.rate.piece)
                if stall is not None and not stall.over.is_set():
                    count = min(count, stall.after_bytes - exchange.body_bytes)
                    if count <= 0:
                        stall.over.wait()
                        continue
                if cut is not None:
                    count = min(count, cut.after_bytes - exchange.body_bytes)
                    if count <= 0:
                        self._cut_off(cut)
                if (delay := self._book.rate.delay(count)) > 0 and self._book.stopping.wait(delay):
                    raise CutOff
                piece = piece[self._send(piece[:count], exchange, head.length) :]
            if len(piece):
                self._client.socket.sendall(piece)

        origin.pump_body(head, send, until_close=True)

    def _send(self, piece: memoryview, exchange: Exchange, length: int | None) -> int:
        """Counted before it is sent, for whoever got the last byte may ask at once; put right if less went out."""
        count, sent = len(piece), 0
        self._book.note(exchange, sent=count, complete=exchange.body_bytes + count == length)
        try:
            sent = self._client.socket.send(piece)
        finally:
            if sent < count:
                self._book.note(exchange, sent=sent - count, complete=False)
        return sent

    def _cut_off(self, cut: Cut) -> None:
        if cut.reset:
            reset(self._client.socket)
        raise CutOff
