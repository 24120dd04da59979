"""HTTP/1.1 over threads: every request as a value, every answer as one, nothing in between."""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast
from urllib.parse import parse_qs, urlsplit

_RANGE = re.compile(r"bytes=(\d+)-(\d*)\Z")


@dataclass(frozen=True, slots=True)
class Ask:
    """One request, and which server was asked. `path` is as it was sent."""

    server: str
    method: str
    path: str
    query: Mapping[str, list[str]]
    headers: Mapping[str, str]

    @property
    def token(self) -> str | None:
        return self.headers.get("authorization", "").removeprefix("Bearer ") or None


@dataclass(slots=True)
class Reply:
    """What goes out; `cut` bytes of the body only, and then the connection ends."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    cut: int | None = None


def ranged(ask: Ask, data: bytes, headers: dict[str, str]) -> Reply:
    if (found := _RANGE.match(ask.headers.get("range", ""))) is None:
        return Reply(200, headers, data)
    start, stop = int(found[1]), min(int(found[2] or len(data)) + 1, len(data))
    if start >= len(data):
        return Reply(416, {"Content-Range": f"bytes */{len(data)}"})
    return Reply(206, {**headers, "Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"}, data[start:stop])


class ThreadedServer(ThreadingHTTPServer):
    daemon_threads = False  # they are waited for
    request_queue_size = 128

    def __init__(self, name: str, answer: Callable[[Ask], Reply | None], tls: ssl.SSLContext | None = None) -> None:
        """None as an answer hangs up."""
        super().__init__(("127.0.0.1", 0), _Handler)
        self.name, self.answer, self._tls = name, answer, tls
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.server_port}"
        self._open = set[socket.socket]()
        self._thread = threading.Thread(target=self.serve_forever, args=(0.02,), name=name)
        self._thread.start()

    def finish_request(self, request: Any, client_address: Any) -> None:
        if self._tls is not None:
            request = self._tls.wrap_socket(request, server_side=True)
        self._open.add(request)
        try:
            super().finish_request(request, client_address)
        finally:
            self._open.discard(request)
            request.close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Whoever went away in the middle of it is no error of ours."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)

    def close(self) -> None:
        self.shutdown()
        self._thread.join(30)
        for connection in tuple(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 1 << 16

    def do_GET(self) -> None:
        server = cast(ThreadedServer, self.server)
        parts = urlsplit(self.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        reply = server.answer(Ask(server.name, self.command, parts.path, parse_qs(parts.query), headers))
        if reply is None:
            self.close_connection = True
            return
        self.send_response(reply.status)
        for name, value in {"Content-Length": str(len(reply.body)), **reply.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(reply.body[: reply.cut])
        self.wfile.flush()
        self.close_connection = self.close_connection or reply.cut is not None

    def do_HEAD(self) -> None:
        self.do_GET()

    def log_message(self, *_: object) -> None:
        """Tests read `asked`."""
