"""No more connections than `max_connections`: one more is told so, at once and without costing a handler, and closed."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable

from aiohttp import web

from hotshelf_shared.errors import DaemonUnavailable
from hotshelf_shared.wire import PROBLEM_JSON

log = logging.getLogger(__name__)
RETRY_AFTER_S = 1
#: One line in the log for so many that were turned away.
TOLD_EVERY = 100
#: How long one that was turned away may take to read why, and how many may do so at once: they cost a descriptor each.
LINGERS_S, MOST_LINGERING = 1.0, 64


class _Door:
    """What all new connections have in common. They are counted when they are made, one after the other: those that are
    accepted in one turn of the event loop are all accepted before the first of them is made."""

    def __init__(self, server: web.Server, most: int) -> None:
        self.server, self.most = server, most
        self.lingering: set[_Visitor] = set()
        self.turned_away = 0
        busy = DaemonUnavailable(
            f"hotshelfd has {most} connections open already",
            hint="Ask again in a moment; close idle connections, or raise `max_connections`.",
            retry_after_s=RETRY_AFTER_S,
        )
        body = json.dumps(busy.to_problem()).encode()
        head = (
            f"HTTP/1.1 {busy.status} Service Unavailable\r\nContent-Type: {PROBLEM_JSON}\r\nContent-Length: {len(body)}\r\n"
            f"Retry-After: {RETRY_AFTER_S}\r\nConnection: close\r\n\r\n"
        )
        self.answer = head.encode() + body

    def tell(self) -> None:
        if self.turned_away % TOLD_EVERY == 0:
            log.warning("too many connections", extra={"max_connections": self.most, "turned_away": self.turned_away + 1})
        self.turned_away += 1


class _Visitor(asyncio.Protocol):
    """Is handed to the server, or turned away: answered before it asked, and given a moment. If it were closed at once, a
    client that still sends its request would meet a broken pipe, and never read when to come back."""

    def __init__(self, door: _Door) -> None:
        self._door = door
        self._leaves: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        door = self._door
        if len(door.server.connections) < door.most:
            handler = door.server()
            transport.set_protocol(handler)
            handler.connection_made(transport)
            return
        door.tell()
        transport.write(door.answer)
        if len(door.lingering) >= MOST_LINGERING:
            transport.close()
            return
        door.lingering.add(self)
        transport.write_eof()
        self._leaves = asyncio.get_running_loop().call_later(LINGERS_S, transport.abort)

    def connection_lost(self, _error: Exception | None) -> None:
        self._door.lingering.discard(self)
        if self._leaves is not None:
            self._leaves.cancel()


def shedding(server: web.Server, most: int) -> Callable[[], asyncio.Protocol]:
    """The protocol of each new connection: it becomes the server's own, or is turned away."""
    door = _Door(server, most)
    return lambda: _Visitor(door)
