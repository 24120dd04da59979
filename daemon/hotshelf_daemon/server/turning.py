"""The calls by which an operator takes what an origin has now, or goes back to what it had."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from hotshelf_daemon.acquire import Gauge, Peer, Refreshing, Turning
from hotshelf_daemon.server.calls import Calls, Route, read_fields
from hotshelf_daemon.server.replies import as_json, stream
from hotshelf_shared import wire
from hotshelf_shared.errors import InvalidRequest


@dataclass(slots=True)
class Turns:
    """What these calls work with."""

    refreshing: Refreshing
    turning: Turning


async def refresh(calls: Calls, request: web.Request, peer: Peer) -> web.StreamResponse:
    body = await read_fields(request, "source", "timeout_s")
    source, timeout_s = _source(body), wire.seconds(body, "timeout_s", wire.DEFAULT_TIMEOUT_S)
    gauge = Gauge(source)
    work = calls.turns.refreshing.refresh(source, gauge, timeout_s=timeout_s, is_admin=peer.is_admin)
    if wire.NDJSON in request.headers.get("Accept", ""):
        return await stream(request, work, gauge.progress, _member, _nothing_to_take_back)
    return as_json(await work)


async def rollback(calls: Calls, request: web.Request, peer: Peer) -> web.StreamResponse:
    body = await read_fields(request, "source", "dry_run")
    dry_run = body.get("dry_run", False)
    if not isinstance(dry_run, bool):
        raise InvalidRequest("dry_run is true or false")
    return as_json(await calls.turns.turning.roll_back(_source(body), uid=peer.uid, dry_run=dry_run))


def _source(body: dict[str, Any]) -> str:
    source = body.get("source")
    if not isinstance(source, str) or not source:
        raise InvalidRequest("source is a source or a configured name", hint="Write s3://BUCKET/PREFIX or a configured name.")
    return source


def _member(answer: dict[str, Any]) -> str:
    return f'"refreshed": {json.dumps(answer)}'


async def _nothing_to_take_back(_: dict[str, Any]) -> None:
    """A source that was refreshed is refreshed, whoever has heard of it."""


ROUTES = (
    Route(
        "POST", "/v1/refresh", refresh, "Ask a source's origin now and take what it has; NDJSON with progress when accepted."
    ),
    Route("POST", "/v1/rollback", rollback, "Return a source to its previous revision until it is refreshed.", admin=True),
)
