"""A file's bytes over HTTP (RFC 9110): the whole, one range, or not again.

Its ETag names the content. The file's own times say when it came here and nothing about that, so no date is told or heeded.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from typing import IO

from aiohttp import ETag, web

_RANGE = re.compile(r"bytes=([0-9]{0,400})-([0-9]{0,400})\Z", re.IGNORECASE)


def answered(request: web.Request, etag: str, told: Mapping[str, str]) -> web.Response | None:
    """What its conditions alone decide, before anything is fetched: 412 or 304; None when it is to be sent."""
    if request.if_match is not None and not _names(request.if_match, etag, weak=False):
        return web.Response(status=412, headers=told)
    if request.if_none_match is not None and _names(request.if_none_match, etag, weak=True):
        return web.Response(status=304, headers=told)
    return None


async def send(request: web.Request, file: IO[bytes], size: int, told: Mapping[str, str]) -> web.StreamResponse:
    """All of it, or what is asked for. `told` has its ETag. The file is open: it is sent to its end, whatever is evicted."""
    span = _span(request, size, told["ETag"])
    if span is not None and not span:
        return web.Response(status=416, headers={**told, "Content-Range": f"bytes */{size}"})
    response = web.StreamResponse(status=200 if span is None else 206, headers=told)
    if span is not None:
        response.headers["Content-Range"] = f"bytes {span[0]}-{span[-1]}/{size}"
    response.content_length = size if span is None else len(span)
    await response.prepare(request)
    if (transport := request.transport) is None:
        return response
    try:
        if response.content_length:
            await asyncio.get_running_loop().sendfile(transport, file, span[0] if span else 0, response.content_length)
    except ConnectionError:
        transport.abort()  # whoever asked has gone, which is no error of ours
        return response
    await response.write_eof()
    return response


def _names(etags: tuple[ETag, ...], etag: str, *, weak: bool) -> bool:
    return any(one.value == "*" or (f'"{one.value}"' == etag and (weak or not one.is_weak)) for one in etags)


def _span(request: web.Request, size: int, etag: str) -> range | None:
    """The bytes that are asked for, an empty range for such as it has none of; None for all, as of what is no single range."""
    found = _RANGE.match(request.headers.get("Range", ""))
    if found is None or request.headers.get("If-Range", etag) != etag or not any(found.groups()):
        return None
    first, last = (int(number) if number else None for number in found.groups())
    if first is None:
        return range(max(size - (last or 0), 0), size)
    if last is not None and last < first:
        return None
    return range(first, size if last is None else min(last + 1, size))
