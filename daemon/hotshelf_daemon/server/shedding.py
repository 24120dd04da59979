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


class _Shed(asyncio.Protocol):
    def __init__(self, answer: bytes) -> None:
        self._answer = answer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if isinstance(transport, asyncio.WriteTransport):
            transport.write(self._answer)
            transport.close()


def shedding(server: web.Server, most: int) -> Callable[[], asyncio.Protocol]:
    """The protocol of each new connection: the server's own, or one that sheds."""
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
    turned_away = 0

    def protocol() -> asyncio.Protocol:
        nonlocal turned_away
        if len(server.connections) < most:
            return server()
        if turned_away % TOLD_EVERY == 0:
            log.warning("too many connections", extra={"max_connections": most, "turned_away": turned_away + 1})
        turned_away += 1
        return _Shed(head.encode() + body)

    return protocol
