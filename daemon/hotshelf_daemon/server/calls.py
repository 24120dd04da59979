"""Every call of /v1: parse, one use case, render. The table at the end is the router's and openapi's only source."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from aiohttp import web

from hotshelf_daemon.acquire import Desk, Explaining, Gauge, Keeping, Leasing, Peer
from hotshelf_daemon.index import blobs
from hotshelf_daemon.server.replies import as_json, stream
from hotshelf_daemon.shelf import Shelf
from hotshelf_shared import wire
from hotshelf_shared.errors import InvalidRequest, TooLarge
from hotshelf_shared.manifest import parse_json
from hotshelf_shared.wire import AcquireRequest, LeaseAnswer, RenewRequest

if TYPE_CHECKING:
    from hotshelf_daemon.server.bundling import Bundling
    from hotshelf_daemon.server.handing import Handing
    from hotshelf_daemon.server.turning import Turns

Call = Callable[["Calls", web.Request, Peer], Awaitable[web.StreamResponse]]


@dataclass(slots=True)
class Calls:
    """What the calls work with."""

    shelf: Shelf
    desk: Desk
    leasing: Leasing
    keeping: Keeping
    explaining: Explaining
    handing: Handing
    bundling: Bundling
    turns: Turns
    version: str
    began: float
    keepers: dict[asyncio.BaseTransport, tuple[int, str]]

    async def acquire(self, request: web.Request, peer: Peer) -> web.StreamResponse:
        order = AcquireRequest.parse(await read_body(request))
        gauge = Gauge(" ".join(str(wish.source) for wish in order.wishes))

        async def work() -> list[LeaseAnswer]:
            return await self.desk.acquire(order, peer, gauge)

        async def take_back(answers: list[LeaseAnswer]) -> None:
            await self.leasing.take_back([answer.id for answer in answers])

        if wire.NDJSON in request.headers.get("Accept", ""):
            return await stream(request, work(), gauge.progress, partial(_granted, order), take_back)
        answers = await work()
        text = f"{{{_granted(order, answers)}}}" if order.several else answers[0].to_json()
        return web.Response(body=text.encode(), content_type=wire.JSON)

    async def resolve(self, request: web.Request, peer: Peer) -> web.StreamResponse:
        found = await self.desk.resolve(AcquireRequest.parse(await read_body(request)), peer)
        return as_json({"resolved": [wire.resolved(*one) for one in found]})

    async def renew(self, request: web.Request, peer: Peer) -> web.StreamResponse:
        order = RenewRequest.parse(await read_body(request, wire.MAX_RENEW_BODY_BYTES))
        if request.transport is not None:
            self.keepers[request.transport] = (peer.uid, order.client)
        kept = await self.leasing.renew(order, peer)
        return as_json({"kept": kept, "expires_s": self.shelf.settings.lease_ttl_s})

    async def release(self, request: web.Request, peer: Peer) -> web.StreamResponse:
        await self.leasing.release(request.match_info["id"], peer)
        return web.Response(status=204)

    async def snapshots(self, _request: web.Request, _peer: Peer) -> web.StreamResponse:
        return as_json({"snapshots": await self.keeping.snapshots()})

    async def snapshot(self, request: web.Request, _peer: Peer) -> web.StreamResponse:
        return as_json(self.keeping.show(request.match_info["target"]))

    async def evict(self, request: web.Request, _peer: Peer) -> web.StreamResponse:
        return as_json(await self.keeping.evict(request.match_info["target"]))

    async def pins(self, _request: web.Request, _peer: Peer) -> web.StreamResponse:
        return as_json({"pins": self.keeping.pins()})

    async def pin(self, request: web.Request, peer: Peer) -> web.StreamResponse:
        return as_json(await self.keeping.pin(request.match_info["target"], uid=peer.uid))

    async def unpin(self, request: web.Request, _peer: Peer) -> web.StreamResponse:
        await self.keeping.unpin(request.match_info["target"])
        return web.Response(status=204)

    async def transfers(self, _request: web.Request, _peer: Peer) -> web.StreamResponse:
        rows = self.shelf.index.read(lambda db: db.execute("SELECT * FROM v_transfers ORDER BY opened_at").fetchall())
        return as_json({"transfers": [dict(row) for row in rows]})

    async def status(self, _request: web.Request, _peer: Peer) -> web.StreamResponse:
        held = self.shelf.held_bytes()
        count = self.shelf.index.read(
            lambda db: db.execute(
                "SELECT (SELECT count(*) FROM snapshots), (SELECT count(*) FROM blobs), (SELECT count(*) FROM leases),"
                " (SELECT count(*) FROM pins), (SELECT count(*) FROM ingests)"
            ).fetchone()
        )
        room = self.shelf.layout.room()
        return as_json(
            {
                "version": self.version,
                "api_version": wire.API_VERSION,
                "pid": os.getpid(),
                "store": self.shelf.layout.root,
                "socket": self.shelf.settings.socket,
                "index": self.shelf.index.path,
                "budget_bytes": self.shelf.budget_bytes(sum(held.values())),
                "held_bytes": held,
                "free_bytes": room.free_bytes,
                **dict(zip(("snapshots", "blobs", "leases", "pins", "transfers"), tuple(count), strict=True)),
                "uptime_s": round(time.monotonic() - self.began, 1),
            }
        )

    async def why(self, request: web.Request, _peer: Peer) -> web.StreamResponse:
        source = request.query.get("source")
        if not source:
            raise InvalidRequest("which source?", hint="GET /v1/why?source=SOURCE")
        return as_json(await self.explaining.why(source))

    async def health(self, _request: web.Request, _peer: Peer) -> web.StreamResponse:
        checks = health(self.shelf)
        ok = all(check["ok"] for check in checks)
        return as_json({"status": "ok" if ok else "degraded", "version": self.version, "checks": checks})

    async def verify(self, request: web.Request, _peer: Peer) -> web.StreamResponse:
        body = await read_fields(request, "revision")
        target = body.get("revision")
        if target is not None and not isinstance(target, str):
            raise InvalidRequest("revision is a revision, source or name")
        return as_json(await self.keeping.verify(target))

    async def collect(self, request: web.Request, _peer: Peer) -> web.StreamResponse:
        body = await read_fields(request, "dry_run")
        dry_run = body.get("dry_run", False)
        if not isinstance(dry_run, bool):
            raise InvalidRequest("dry_run is true or false")
        return as_json(await self.keeping.collect(dry_run=dry_run))


def health(shelf: Shelf) -> list[dict[str, Any]]:
    """Cheap checks that a probe may ask for every second."""
    try:
        shelf.index.read(blobs.bytes_by_state)
        index_ok = True
    except Exception:
        index_ok = False
    writable = os.access(shelf.layout.root, os.W_OK)
    room = shelf.layout.room()
    return [
        {"check": "index", "ok": index_ok},
        {"check": "store_writable", "ok": writable},
        {"check": "inodes", "ok": room.free_inodes > 1000},
    ]


def _granted(order: AcquireRequest, answers: list[LeaseAnswer]) -> str:
    """The member of a JSON object that holds what was granted."""
    if order.several:
        return f'"leases": [{", ".join(answer.to_json() for answer in answers)}]'
    return f'"lease": {answers[0].to_json()}'


async def read_body(request: web.Request, limit: int = wire.MAX_ACQUIRE_BODY_BYTES) -> bytes:
    """The body. Raises TooLarge beyond `limit` bytes."""
    data = b"" if (request.content_length or 0) > limit else await request.read()
    if max(len(data), request.content_length or 0) > limit:
        raise TooLarge("the body is too large", hint=f"This call's body has {limit:,} bytes at most.")
    return data


async def read_fields(request: web.Request, *known: str) -> dict[str, Any]:
    """The members of a JSON object, none but those. Raises InvalidRequest, TooLarge."""
    data = await read_body(request)
    body = parse_json(data, "the body", InvalidRequest) if data else {}
    if not isinstance(body, dict) or set(body) - set(known):
        raise InvalidRequest(f"the body is a JSON object with no other field than {', '.join(known)}")
    return body


@dataclass(frozen=True, slots=True)
class Route:
    """`admin` calls need `admin_uids`; one that `streams` says itself when a body that awaits it may come.

    `also` are good statuses besides 200, and what they mean; `query` are parameters that it needs.
    """

    method: str
    path: str
    call: Call
    summary: str
    admin: bool = False
    streams: bool = False
    also: Mapping[str, str] = field(default_factory=dict)
    query: tuple[str, ...] = ()


ROUTES = (
    Route("POST", "/v1/leases", Calls.acquire, "Acquire one source or several; NDJSON with progress when accepted."),
    Route("POST", "/v1/resolve", Calls.resolve, "Say what sources stand for, fetching nothing of them."),
    Route("POST", "/v1/leases/renew", Calls.renew, "Declare every lease this client holds."),
    Route("DELETE", "/v1/leases/{id}", Calls.release, "Release a lease."),
    Route("GET", "/v1/snapshots", Calls.snapshots, "List snapshots."),
    Route("GET", "/v1/snapshots/{target:.+}", Calls.snapshot, "Show a snapshot by revision, source or name."),
    Route("DELETE", "/v1/snapshots/{target:.+}", Calls.evict, "Evict a snapshot that nothing holds.", admin=True),
    Route("GET", "/v1/pins", Calls.pins, "List pins."),
    Route("PUT", "/v1/pins/{target:.+}", Calls.pin, "Pin a revision, or whatever a name stands for."),
    Route("DELETE", "/v1/pins/{target:.+}", Calls.unpin, "Remove a pin.", admin=True),
    Route("GET", "/v1/transfers", Calls.transfers, "List downloads under way or interrupted."),
    Route("GET", "/v1/why", Calls.why, "Why a source is here, or is not.", query=("source",)),
    Route("GET", "/v1/status", Calls.status, "The daemon, its store and its budget."),
    Route("GET", "/v1/health", Calls.health, "Whether all is well."),
    Route("POST", "/v1/verify", Calls.verify, "Re-hash what is held.", admin=True),
    Route("POST", "/v1/collect", Calls.collect, "Remove what no snapshot holds.", admin=True),
)
