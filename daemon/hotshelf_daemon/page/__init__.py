"""The TCP listener for the node's people and programs: for now the Hugging Face mirror, where it is switched on."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from hotshelf_daemon.acquire import Repositories
from hotshelf_daemon.config import Settings
from hotshelf_daemon.page import hub
from hotshelf_daemon.shelf import Shelf

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def application(shelf: Shelf, repositories: Repositories) -> web.Application:
    app = web.Application(middlewares=[_known_hosts(shelf.settings)])
    hub.add_to(app, shelf, repositories)
    return app


def _known_hosts(settings: Settings) -> Any:
    """Against DNS rebinding: a page somewhere that leads a browser here names another host."""
    listens = settings.page_listen.rpartition(":")[0]
    known = {"localhost", "127.0.0.1", "[::1]", listens.lower(), *(host.lower() for host in settings.page_hosts)}

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        host = request.headers.get("Host", "").lower()
        name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
        if name not in known:
            said = f"{name[:200]!a} is no name of this host: see page_hosts"
            return web.Response(status=421, text=f"{said}\n", headers={"X-Error-Message": said})
        return await handler(request)

    return check
