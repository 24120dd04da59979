"""An S3 service in raw asyncio that can be made to answer anything at all, malformed heads and broken bodies included.

It is good by default: HEAD, ranged GET under If-Match, pages of listings, PUT, multipart uploads. A `Misdeed` spoils the
answers to some requests. It signs nobody in: whoever asks is served. Its loop runs on a thread of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import re
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

PAGE_KEYS = 1_000
DRIP_S = 0.05
_RANGE = re.compile(r"bytes=(\d+)-(\d*)\Z")


class LoopThread:
    """An event loop on a thread; `stop` cancels what still runs there and waits for its end."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True, name="scripted")
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(30)

    def stop(self) -> None:
        async def end() -> None:
            rest = asyncio.all_tasks() - {asyncio.current_task()}
            for task in rest:
                task.cancel()
            await asyncio.gather(*rest, return_exceptions=True)

        self.run(end())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(30)
        self.loop.close()


@dataclass(slots=True)
class Ask:
    """One request. `kind` is HEAD, GET (of an object), LIST, or any other method."""

    method: str
    key: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes
    at: float

    @property
    def kind(self) -> str:
        return "LIST" if self.method == "GET" and not self.key else self.method

    @property
    def range(self) -> tuple[int, int | None] | None:
        found = _RANGE.match(self.headers.get("range", ""))
        return (int(found[1]), int(found[2]) if found[2] else None) if found else None


@dataclass(slots=True)
class Reply:
    """What goes out. `cut` bytes of the body are sent (None: all), then the connection ends as `ending` says.

    keep: as HTTP has it; fin, rst: it closes; stall: it goes quiet; drip: the rest comes byte by byte; dead: it answers,
    and never again on that connection. `raw` replaces the head.
    """

    status: int
    headers: dict[str, str | None] = field(default_factory=dict)
    body: bytes = b""
    cut: int | None = None
    ending: str = "keep"
    raw: bytes | None = None

    def head(self) -> bytes:
        if self.raw is not None:
            return self.raw
        lines = [f"HTTP/1.1 {self.status} Scripted", *(f"{n}: {v}" for n, v in self.headers.items() if v is not None)]
        return "\r\n".join([*lines, "", ""]).encode("latin-1")


Spoil = Callable[[Ask, Reply], None]


@dataclass(slots=True, eq=False)
class Misdeed:
    """Spoils the answers to requests of one kind for keys that start so, `times` times (None: until healed)."""

    spoil: Spoil
    on: str = "GET"
    prefix: str = ""
    times: int | None = None
    when: Callable[[Ask], bool] = lambda _ask: True

    def meets(self, ask: Ask) -> bool:
        named = ask.key or ask.query.get("prefix", "")
        return self.times != 0 and ask.kind == self.on and named.startswith(self.prefix) and self.when(ask)


def error(code: str, message: str = "as scripted") -> bytes:
    return f'<?xml version="1.0"?>\n<Error><Code>{code}</Code><Message>{message}</Message></Error>'.encode()


class ScriptedOrigin:
    """`with ScriptedOrigin() as origin: origin.objects["a"] = b"…"`; any bucket name is the same bucket."""

    def __init__(self, *, tls: ssl.SSLContext | None = None, at: tuple[str, int] = ("127.0.0.1", 0)) -> None:
        """`at` is for an origin that must be found again under its old address."""
        self.objects: dict[str, bytes] = {}
        self.asked: list[Ask] = []
        self.page_keys = PAGE_KEYS
        self._misdeeds: list[Misdeed] = []
        self._uploads: dict[str, dict[int, bytes]] = {}
        self._numbers = itertools.count(1)
        self._healed = asyncio.Event()
        self._tls, self._at = tls, at
        self._loop = LoopThread()
        self._connections: set[asyncio.StreamWriter] = set()

    def __enter__(self) -> Self:
        self._server = self._loop.run(asyncio.start_server(self._serve, *self._at, ssl=self._tls))
        self.port = self._server.sockets[0].getsockname()[1]
        self.endpoint_url = f"{'https' if self._tls else 'http'}://{self._at[0]}:{self.port}"
        return self

    def __exit__(self, *_: object) -> None:
        async def close() -> None:
            self._server.close()
            for writer in [*self._connections]:
                writer.transport.abort()

        self.heal()
        self._loop.run(close())
        self._loop.stop()

    # ---- the script

    def misdeed(self, spoil: Spoil, **more: Any) -> None:
        self._misdeeds.append(Misdeed(spoil, **more))

    def heal(self) -> None:
        """Forgets every misdeed and ends every stall."""

        def end_stalls() -> None:
            self._healed.set()
            self._healed = asyncio.Event()

        self._misdeeds.clear()
        self._loop.loop.call_soon_threadsafe(end_stalls)

    def asked_for(self, prefix: str, kind: str | None = None) -> list[Ask]:
        return [
            ask
            for ask in [*self.asked]
            if (ask.key or ask.query.get("prefix", "")).startswith(prefix) and kind in (None, ask.kind)
        ]

    @property
    def uploads_left_open(self) -> int:
        return len(self._uploads)

    # ---- the connection

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections.add(writer)
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                while await self._exchange(reader, writer):
                    pass
        finally:
            self._connections.discard(writer)
            writer.transport.abort()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        ask = self._understood(await _read(reader, writer))
        self.asked.append(ask)
        reply = self._answer(ask)
        misdeed = next((m for m in self._misdeeds if m.meets(ask)), None)
        if misdeed is not None:
            misdeed.times = misdeed.times if misdeed.times is None else misdeed.times - 1
            misdeed.spoil(ask, reply)
        body = b"" if ask.method == "HEAD" else reply.body
        writer.write(reply.head() + body[: reply.cut])
        await writer.drain()
        return await self._end(reply, body, writer)

    async def _end(self, reply: Reply, body: bytes, writer: asyncio.StreamWriter) -> bool:
        """Whether the connection goes on."""
        if reply.ending == "rst":
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return False
        if reply.ending == "fin":
            writer.write_eof()
            return False
        if reply.ending in ("stall", "dead"):
            await self._healed.wait()
            return False
        if reply.ending == "drip":
            healed = self._healed
            for at in range(reply.cut or 0, len(body)):
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(healed.wait(), DRIP_S)
                    return False
                writer.write(body[at : at + 1])
                await writer.drain()
        return True

    # ---- the service

    def _understood(self, ask: Ask) -> Ask:
        """What another protocol makes of the request."""
        return ask

    def _answer(self, ask: Ask) -> Reply:
        if ask.kind == "LIST":
            return self._listing(ask)
        if ask.method in ("PUT", "POST", "DELETE"):
            return self._write(ask)
        data = self.objects.get(ask.key)
        if data is None:
            return self._xml(404, error("NoSuchKey"))
        if ask.headers.get("if-match", tag(data)) != tag(data):
            return self._xml(412, error("PreconditionFailed"))
        headers: dict[str, str | None] = {"ETag": tag(data), "Accept-Ranges": "bytes", "Content-Type": "binary/octet-stream"}
        if asked := ask.range:
            start, last = asked[0], min(len(data) - 1, asked[1] if asked[1] is not None else len(data) - 1)
            if start >= len(data):
                return self._xml(416, error("InvalidRange"))
            headers["Content-Range"] = f"bytes {start}-{last}/{len(data)}"
            return Reply(206, {**headers, "Content-Length": str(last + 1 - start)}, data[start : last + 1])
        return Reply(200, {**headers, "Content-Length": str(len(data))}, data)

    def _listing(self, ask: Ask) -> Reply:
        prefix, after = ask.query.get("prefix", ""), ask.query.get("continuation-token", "")
        keys = sorted(key for key in self.objects if key.startswith(prefix) and key > after)
        page, rest = keys[: self.page_keys], keys[self.page_keys :]
        entries = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>{len(self.objects[key])}</Size>"
            f"<ETag>{escape(tag(self.objects[key]))}</ETag></Contents>"
            for key in page
        )
        more = f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>" if rest else ""
        listing = f"<IsTruncated>{'true' if rest else 'false'}</IsTruncated>{entries}{more}"
        return self._xml(200, f'<?xml version="1.0"?>\n<ListBucketResult>{listing}</ListBucketResult>'.encode())

    def _write(self, ask: Ask) -> Reply:
        upload = ask.query.get("uploadId", "")
        if ask.method == "POST" and "uploads" in ask.query:
            self._uploads[upload := f"u{next(self._numbers)}"] = {}
            body = f"<InitiateMultipartUploadResult><UploadId>{upload}</UploadId></InitiateMultipartUploadResult>"
            return self._xml(200, body.encode())
        if ask.method == "DELETE":
            self._uploads.pop(upload, None)
            return Reply(204, {"Content-Length": "0"})
        if ask.method == "PUT" and upload:
            self._uploads[upload][int(ask.query["partNumber"])] = ask.body
            return Reply(200, {"ETag": tag(ask.body), "Content-Length": "0"})
        if ask.headers.get("if-none-match") == "*" and ask.key in self.objects:
            return self._xml(412, error("PreconditionFailed"))
        parts = self._uploads.pop(upload, None)
        data = ask.body if parts is None else b"".join(parts[number] for number in sorted(parts))
        self.objects[ask.key] = data
        if parts is None:
            return Reply(200, {"ETag": tag(data), "Content-Length": "0"})
        return self._xml(200, b"<CompleteMultipartUploadResult></CompleteMultipartUploadResult>")

    def _xml(self, status: int, body: bytes) -> Reply:
        return Reply(status, {"Content-Type": "application/xml", "Content-Length": str(len(body))}, body)


def tag(data: bytes) -> str:
    return f'"{hashlib.md5(data).hexdigest()}"'


async def _read(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Ask:
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if headers.get("expect", "").lower() == "100-continue":
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    method, target, _ = first.split(" ", 2)
    parts = urlsplit(target)
    key = unquote(parts.path).removeprefix("/").partition("/")[2]
    query = {name: values[0] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
    return Ask(method, key, query, headers, body, asyncio.get_running_loop().time())
