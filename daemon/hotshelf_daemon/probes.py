"""The TCP listener for the kubelet and for Prometheus: /livez, /readyz, /metrics and nothing else."""

from __future__ import annotations

from dataclasses import dataclass

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

from hotshelf_daemon.server import health
from hotshelf_daemon.shelf import Shelf


@dataclass(slots=True)
class Probed:
    """What is asked about. There is no shelf while the store is put right, which may take long: alive, and not ready."""

    shelf: Shelf | None = None
    #: Whether the socket takes requests: not yet while starting, and no more while draining.
    is_serving: bool = False


def application(probed: Probed) -> web.Application:
    async def livez(_request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(_request: web.Request) -> web.Response:
        if probed.shelf is None or not probed.is_serving:
            return web.Response(text="the socket does not take requests\n", status=503)
        wrong = [check["check"] for check in health(probed.shelf) if not check["ok"]]
        # A shelf that cannot be written still serves what it holds: only a lost index makes it unready.
        ready = "index" not in wrong
        return web.Response(text=f"degraded: {', '.join(wrong)}\n" if wrong else "ok\n", status=200 if ready else 503)

    async def metrics(_request: web.Request) -> web.Response:
        if (shelf := probed.shelf) is None:
            return web.Response(text="the store is being put right\n", status=503)
        held = shelf.held_bytes()
        for state, size in held.items():
            shelf.metrics.store_bytes.labels(state).set(size)
        shelf.metrics.budget_bytes.set(shelf.budget_bytes(sum(held.values())))
        shelf.metrics.index_wal_bytes.set(shelf.index.wal_bytes())
        return web.Response(body=shelf.metrics.render(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.router.add_get("/livez", livez)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/metrics", metrics)
    return app


def address(listen: str) -> tuple[str | None, int]:
    """HOST:PORT apart; an empty host means every address."""
    host, _, port = listen.rpartition(":")
    return host.strip("[]") or None, int(port)
