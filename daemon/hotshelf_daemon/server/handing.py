"""The calls by which workers hand things in: blobs, and the pipelines that they are bound to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

from aiohttp import web

from hotshelf_daemon.acquire import Binder, HandIns, Peer, Pipelines
from hotshelf_daemon.server.calls import Calls, Route
from hotshelf_daemon.server.replies import as_json, as_problem
from hotshelf_shared import wire
from hotshelf_shared.built import MAX_BIND_BODY_BYTES, BindRequest
from hotshelf_shared.digest import Digest
from hotshelf_shared.errors import HotshelfError, InvalidRequest, NotFound, TooLarge
from hotshelf_shared.manifest import MAX_FILE_BYTES


@dataclass(slots=True)
class Handing:
    """What these calls work with."""

    hand_ins: HandIns
    binder: Binder
    pipelines: Pipelines


async def look_at_blob(calls: Calls, request: web.Request, peer: Peer) -> web.StreamResponse:
    digest = Digest.parse(request.match_info["digest"])
    size = await calls.handing.hand_ins.hold(digest, uid=peer.uid)
    if size is None:
        raise NotFound(f"{digest} is not held")
    return web.Response(headers={wire.SIZE_HEADER: str(size)})


async def hand_in(calls: Calls, request: web.Request, peer: Peer) -> web.StreamResponse:
    """201 when the bytes came, 204 when they were here: an answer without the body having been read ends the connection."""
    try:
        response = web.Response(status=201 if await _take_in(calls, request, peer) else 204)
    except HotshelfError as error:
        response = as_problem(error)
    if not request.content.at_eof():
        response.force_close()  # what is still on its way is no next request
    return response


async def _take_in(calls: Calls, request: web.Request, peer: Peer) -> bool:
    digest, size = Digest.parse(request.match_info["digest"]), _length(request)
    hand_ins = calls.handing.hand_ins
    if await hand_ins.hold(digest, uid=peer.uid) is not None:
        return False
    await hand_ins.take_in(digest, size, _body(request), uid=peer.uid)
    return True


async def bind(calls: Calls, request: web.Request, peer: Peer) -> web.StreamResponse:
    key = request.match_info["key"]
    order = await asyncio.to_thread(BindRequest.parse, await _read(request, MAX_BIND_BODY_BYTES))
    new = await calls.handing.binder.bind(key, order, peer)
    return as_json(await calls.handing.pipelines.show(key, uid=peer.uid), status=201 if new else 200)


async def show_pipeline(calls: Calls, request: web.Request, peer: Peer) -> web.StreamResponse:
    return as_json(await calls.handing.pipelines.show(request.match_info["key"], uid=peer.uid))


async def unasked(_request: web.Request) -> None:
    """`Expect: 100-continue` is answered when there is room for the body, not before: see `_body`."""


def _length(request: web.Request) -> int:
    """The Content-Length of a body that may be large. Raises InvalidRequest or TooLarge."""
    if "Transfer-Encoding" in request.headers or request.content_length is None:
        raise InvalidRequest("bytes are handed in with a Content-Length, not chunked", hint="Say how many bytes will come.")
    if request.content_length > MAX_FILE_BYTES:
        raise TooLarge(f"{request.content_length:,} bytes are more than any file has")
    if request.headers.get("Content-Encoding", "identity") != "identity":
        raise InvalidRequest("bytes are handed in as they are, without Content-Encoding")
    return request.content_length


async def _body(request: web.Request) -> AsyncIterator[bytes]:
    """The body, asked for only now."""
    if request.headers.get("Expect", "").lower() == "100-continue":
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # what was written is no part of the answer
    async for piece in request.content.iter_any():
        yield piece


async def _read(request: web.Request, limit: int) -> bytes:
    """A body larger than the other calls' have. Raises TooLarge beyond `limit` bytes."""
    too_large = TooLarge("the body is too large", hint=f"This call's body has {limit:,} bytes at most.")
    if (request.content_length or 0) > limit:
        raise too_large
    data = bytearray()
    async for piece in request.content.iter_any():
        data += piece
        if len(data) > limit:
            raise too_large
    return bytes(data)


ROUTES = (
    Route("HEAD", "/v1/blobs/{digest}", look_at_blob, "Whether a blob is held; keeps it for whoever asks, for a while."),
    Route(
        "PUT",
        "/v1/blobs/{digest}",
        hand_in,
        "Hand a blob in; Content-Length is required.",
        streams=True,
        also={"201": "It came, and is held.", "204": "It was held already."},
    ),
    Route("GET", "/v1/pipelines/{key}", show_pipeline, "Show a pipeline that the caller may lease."),
    Route(
        "PUT",
        "/v1/pipelines/{key}",
        bind,
        "Bind a tree over held blobs to the key of its recipe.",
        also={"201": "It is bound; 200 says that it was."},
    ),
)
