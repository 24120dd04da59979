"""A scripted hotshelfd: its manners as a function of requests, served in memory or over a real Unix socket."""

from __future__ import annotations

import itertools
import json
import os
import queue
import socketserver
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from hotshelf.transport import Reply, Request
from hotshelf_shared.digest import Digest
from hotshelf_shared.errors import HotshelfError, NotFound

Answer = Callable[[Request], Reply]
PATIENCE_S = 20.0


class HangUp(Exception):
    """Raised by an answer, or while its lines are drawn: the connection ends there and then."""


class FakeDaemon:
    """Grants every acquire a directory of one file; keeps the leases it granted; remembers what it was asked."""

    def __init__(self, store: Path) -> None:
        self.store = store
        self.leases: dict[str, str | None] = {}
        self.requests: queue.Queue[Request] = queue.Queue()
        self.renewals: queue.Queue[dict[str, Any]] = queue.Queue()
        self.freed: queue.Queue[str] = queue.Queue()
        self.expires_s = 60.0
        self.acquires: list[Answer] = []  # scripted answers, used up before the usual one
        self.looks: dict[tuple[str, str], Answer] = {}  # (method, path) → answer
        self._grants = itertools.count(1)

    def __call__(self, request: Request) -> Reply:
        self.requests.put(request)
        if (request.method, request.path) in self.looks:
            return self.looks[request.method, request.path](request)
        if request.path == "/v1/leases":
            return (self.acquires.pop(0) if self.acquires else self.grant)(request)
        if request.path == "/v1/leases/renew":
            kept = [one for one in request.body["ids"] if one in self.leases]
            self.renewals.put(request.body)
            return Reply({"kept": kept, "expires_s": self.expires_s})
        if request.method == "DELETE" and request.path.startswith("/v1/leases/"):
            lease = request.path.rsplit("/", 1)[1]
            self.leases.pop(lease, None)
            self.freed.put(lease)
            return Reply(None, status=204)
        raise NotFound(f"{request.method} {request.path}")

    def grant(self, request: Request) -> Reply:
        body = request.body
        wanted = body.get("sources", [body.get("source")])
        granted = [self.lease(one if isinstance(one, str) else one["source"], body.get("client")) for one in wanted]
        ready = {"event": "ready", "leases": granted} if "sources" in body else {"event": "ready", "lease": granted[0]}
        progress = {"event": "progress", "phase": "fetching", "bytes_done": 3, "bytes_total": 6, "rate_bytes_s": 3.0}
        return Reply(lines=[progress, ready])

    def lease(self, source: str, client: str | None = None) -> dict[str, Any]:
        grant = next(self._grants)
        content = source.encode()
        revision = Digest.of(content)
        folder = self.store / "snapshots" / revision.hex
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model.safetensors").write_bytes(content)
        lease_id = f"lease{grant}"
        self.leases[lease_id] = client
        return {
            "id": lease_id,
            "grant": grant,
            "source": source,
            "revision": revision,
            "path": f"snapshots/{revision.hex}",
            "kind": "tree",
            "files": [{"path": "model.safetensors", "digest": revision, "size": len(content)}],
            "skipped": [{"path": "evil.py", "reason": "it executes"}],
            "expires_s": self.expires_s,
            "store": str(self.store),
        }

    def asked(self, method: str, path: str) -> Request:
        """The next request of that kind; others before it are passed over."""
        while True:
            request = self.requests.get(timeout=PATIENCE_S)
            if (request.method, unquote(request.path)) == (method, path):
                return request


class UnixServer:
    """Serves an answer on a Unix socket. `stop` ends every connection, as the death of a process does."""

    def __init__(self, path: Path, answer: Answer) -> None:
        self.path, self.answer = path, answer
        self.connections: list[Any] = []
        self.closed: queue.Queue[int] = queue.Queue()  # a connection's end, as the daemon sees it
        self._server: socketserver.ThreadingUnixStreamServer | None = None

    def start(self) -> UnixServer:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                server.connections.append(self.connection)

            def finish(self) -> None:
                super().finish()
                server.closed.put(len(server.connections))

            def log_message(self, *args: object) -> None:
                pass

            def do_GET(self) -> None:
                server.serve(self)

            do_POST = do_PUT = do_DELETE = do_HEAD = do_GET  # noqa: N815

        class Server(socketserver.ThreadingUnixStreamServer):
            daemon_threads = True
            block_on_close = False
            request_queue_size = 128

            def handle_error(self, *args: object) -> None:
                pass  # the peer went away in mid-answer: what these tests are about

        self.path.unlink(missing_ok=True)
        self._server = Server(str(self.path), Handler)
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
        for connection in self.connections:
            try:
                connection.shutdown(2)
            except OSError:
                continue
        self.path.unlink(missing_ok=True)

    def serve(self, http: BaseHTTPRequestHandler) -> None:
        length = int(http.headers.get("Content-Length") or 0)
        raw = http.rfile.read(length)
        is_upload = http.headers.get("Content-Type") == "application/octet-stream"
        body = None if is_upload else json.loads(raw or b"null")
        http.close_connection = True
        try:
            reply = self.answer(Request(http.command, http.path, body, 0.0, raw if is_upload else None))
        except HangUp:
            return
        except HotshelfError as error:
            reply = Reply(error.to_problem(), status=error.status, headers={"X-Hotshelf-Code": error.code})
        if reply.lines:
            self._stream(http, reply)
        else:
            data = b"" if reply.body is None else json.dumps(reply.body).encode()
            http.send_response(reply.status)
            for name, text in {**reply.headers, "Content-Length": str(len(data))}.items():
                http.send_header(name, text)
            http.end_headers()
            if http.command != "HEAD":
                http.wfile.write(data)
            http.close_connection = False

    def _stream(self, http: BaseHTTPRequestHandler, reply: Reply) -> None:
        http.send_response(reply.status)
        http.send_header("Content-Type", "application/x-ndjson")
        http.send_header("Transfer-Encoding", "chunked")
        http.end_headers()
        try:
            for line in reply.lines:
                data = line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n"
                http.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
        except HangUp:
            return
        http.wfile.write(b"0\r\n\r\n")
        http.close_connection = False


def socket_path(folder: Path) -> Path:
    """Short enough for `sockaddr_un`, whatever pytest calls its folders."""
    short = Path(f"/tmp/hs-{os.getpid()}-{abs(hash(str(folder))) % 10**9}")
    short.mkdir(mode=0o700, exist_ok=True)
    return short / "s"
