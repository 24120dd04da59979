"""The edge on the Unix socket: `application` is /v1, `listen_on` makes the socket nobody else can steal."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from aiohttp import web

from hotshelf_daemon.acquire import Peer
from hotshelf_daemon.server import bundling, handing, turning
from hotshelf_daemon.server import calls as workers_calls
from hotshelf_daemon.server.bundling import Bundling
from hotshelf_daemon.server.calls import Calls, Route, health
from hotshelf_daemon.server.handing import Handing
from hotshelf_daemon.server.openapi import document
from hotshelf_daemon.server.peers import Guard
from hotshelf_daemon.server.replies import as_json, problems
from hotshelf_daemon.server.shedding import shedding
from hotshelf_daemon.server.turning import Turns
from hotshelf_daemon.server.unix import listen_on, remove_own
from hotshelf_shared.errors import DaemonUnavailable
from hotshelf_shared.wire import MAX_RENEW_BODY_BYTES

__all__ = [
    "ROUTES", "Bundling", "Calls", "Guard", "Handing", "Turns", "application", "health", "listen_on", "remove_own", "shedding",
]  # fmt: skip

ROUTES = (*workers_calls.ROUTES, *handing.ROUTES, *bundling.ROUTES, *turning.ROUTES)


def application(calls: Calls, guard: Guard) -> web.Application:
    """Every call goes through the guard; admin calls through it twice."""
    app = web.Application(middlewares=[problems(calls.version)], client_max_size=MAX_RENEW_BODY_BYTES + 1)
    for route in ROUTES:
        expected = handing.unasked if route.streams else None
        app.router.add_route(route.method, route.path, _guarded(route, calls, guard), expect_handler=expected)
    described = document(ROUTES, calls.version)

    async def openapi(request: web.Request) -> web.StreamResponse:
        _admit(request, guard)
        return as_json(described)

    app.router.add_get("/v1/openapi.json", openapi)
    return app


def _guarded(route: Route, calls: Calls, guard: Guard) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def handle(request: web.Request) -> web.StreamResponse:
        peer = _admit(request, guard)
        if route.admin:
            guard.check_admin(peer)
        return await route.call(calls, request, peer)

    return handle


def _admit(request: web.Request, guard: Guard) -> Peer:
    if request.transport is None:
        raise DaemonUnavailable("the connection is gone")
    return guard.admit(request.transport)
