"""How results leave: JSON, problems of RFC 9457, and streams of NDJSON that show progress until the end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from aiohttp import web

from hotshelf_daemon.store import durable
from hotshelf_shared import wire
from hotshelf_shared.errors import HotshelfError, InvalidRequest, NotFound, TooLarge
from hotshelf_shared.wire import AGENT, Progress

log = logging.getLogger(__name__)
PROGRESS_S = 0.25
T = TypeVar("T")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def as_json(body: Any, *, status: int = 200) -> web.Response:
    return web.Response(body=json.dumps(body).encode(), status=status, content_type=wire.JSON)


def as_problem(error: HotshelfError) -> web.Response:
    response = web.Response(
        body=json.dumps(error.to_problem(), default=str).encode(), status=error.status, content_type=wire.PROBLEM_JSON
    )
    response.headers[wire.CODE_HEADER] = error.code  # the answer to HEAD has no body to say it in
    if error.retry_after_s is not None:
        response.headers["Retry-After"] = str(max(1, round(error.retry_after_s)))
    return response


def problems(version: str) -> Any:
    """The middleware by which whatever goes wrong leaves as a problem; only a defect is a 500, logged with its traceback."""

    @web.middleware
    async def answer(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except InvalidRequest as error:
            return as_problem(_across_versions(request, error, version))
        except HotshelfError as error:
            return as_problem(error)
        except web.HTTPException as error:
            return as_problem(_across_versions(request, _of_http(request, error), version))
        except (ConnectionError, asyncio.CancelledError):
            raise
        except Exception as error:
            return as_problem(_as_ours(request, error))

    return answer


def _across_versions(request: web.Request, error: HotshelfError, version: str) -> HotshelfError:
    """A request that this daemon does not understand is most often another version's: then the hint says so."""
    agent = request.headers.get("User-Agent", "")
    if agent.startswith(AGENT) and (theirs := agent.removeprefix(AGENT)[:40]) != version:
        error.hint += (
            f" This client is hotshelf {theirs} and the daemon {version}: if they do not agree, upgrade the older one."
        )
    return error


def _of_http(request: web.Request, error: web.HTTPException) -> HotshelfError:
    if isinstance(error, web.HTTPNotFound | web.HTTPMethodNotAllowed):
        return NotFound(f"{request.method} {request.path[:200]} is no call of /v1", hint="See GET /v1/openapi.json.")
    if isinstance(error, web.HTTPRequestEntityTooLarge):
        return TooLarge("the body is too large", hint=f"A body has {wire.MAX_RENEW_BODY_BYTES:,} bytes at most.")
    return InvalidRequest(f"{error.status} {error.reason}")


async def stream(
    request: web.Request,
    work: Coroutine[Any, Any, T],
    progress: Callable[[], Progress],
    render: Callable[[T], str],
    undelivered: Callable[[T], Awaitable[None]],
) -> web.StreamResponse:
    """Progress lines while `work` runs, then a ready event with the members that `render` makes, or its problem.

    A client that goes away cancels the work; a result that cannot be delivered is given to `undelivered`.
    """
    task = asyncio.create_task(work)
    response = web.StreamResponse(headers={"Content-Type": wire.NDJSON, "Cache-Control": "no-store"})
    try:
        await response.prepare(request)
        while not (await asyncio.wait({task}, timeout=PROGRESS_S))[0]:
            await response.write(_line(json.dumps(progress().to_json())))
        try:
            line = f'{{"event": "ready", {render(task.result())}}}'
        except Exception as error:
            line = json.dumps({"event": "error", "problem": _as_ours(request, error).to_problem()}, default=str)
        await response.write(_line(line))
        await response.write_eof()
    except (ConnectionResetError, asyncio.CancelledError):
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, HotshelfError):
            await undelivered(await task)
        raise
    return response


def _as_ours(request: web.Request, error: Exception) -> HotshelfError:
    if isinstance(error, HotshelfError):
        return error
    if isinstance(error, OSError) and error.errno:
        log.warning("the system refused", extra={"path": request.path}, exc_info=error)
        return durable.as_ours(error, f"{request.method} {request.path[:200]}")
    log.error("defect", extra={"path": request.path}, exc_info=error)
    return HotshelfError(f"an unexpected {type(error).__name__} in hotshelfd")


def _line(text: str) -> bytes:
    return text.encode() + b"\n"
