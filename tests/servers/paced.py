"""An origin as slow as it is told to be: a time to first byte, a rate per connection, a rate over all of them.

    python -m tests.servers.paced ROOT PORT FIRST_BYTE_S CONNECTION_RATE TOTAL_RATE MOST_AT_ONCE

Range, ETag and If-Match over a folder, sent by sendfile from a process of its own; the kernel paces each connection, so that
it takes next to no time itself. nginx's `limit_rate` would not do: it lets the first second's bytes through at once, for each
request. Rates are in bytes a second, 0 is none; more than MOST_AT_ONCE requests at once are answered 503 (0: as many as come).
"""

from __future__ import annotations

import os
import pathlib
import re
import socket
import socketserver
import sys
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler
from typing import Self

from tests.servers.child import Child, clean_environment
from tests.servers.ports import free_ports

SLICE_BYTES = 256 << 10
_SO_MAX_PACING_RATE = 47
_RANGE = re.compile(r"bytes=(\d+)-(\d+)\Z")


class Pace:
    """Lets bytes through at a rate. Thread-safe; never more than a moment's worth at once."""

    def __init__(self, rate: float) -> None:
        self.rate, self._lock, self._due = rate, threading.Lock(), 0.0

    def wait(self, count: int) -> None:
        if not self.rate:
            return
        with self._lock:
            now = time.monotonic()
            self._due = max(self._due, now - 0.002) + count / self.rate
            wait = self._due - now
        if wait > 0:
            time.sleep(wait)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    root: pathlib.Path
    first_byte_s = connection_rate = 0.0
    most_at_once = 0
    total = Pace(0)
    under_way = 0
    counting = threading.Lock()

    def setup(self) -> None:
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.connection_rate:
            self.connection.setsockopt(socket.SOL_SOCKET, _SO_MAX_PACING_RATE, int(self.connection_rate))

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        with self.counting:
            type(self).under_way += 1
            busy = self.most_at_once and self.under_way > self.most_at_once
        try:
            if busy:
                self._refuse(503)
            else:
                self._answer(body=True)
        finally:
            with self.counting:
                type(self).under_way -= 1

    def _answer(self, *, body: bool) -> None:
        path = self.root / self.path.partition("?")[0].lstrip("/")
        if not path.is_file():
            return self._refuse(404)
        size, tag = path.stat().st_size, f'"{path.stat().st_mtime_ns:x}"'
        if self.headers.get("If-Match", tag) != tag:
            return self._refuse(412)
        found = _RANGE.match(self.headers.get("Range", ""))
        start, stop = (int(found[1]), min(int(found[2]) + 1, size)) if found else (0, size)
        time.sleep(self.first_byte_s if body else 0)
        self.send_response(206 if found else 200)
        self.send_header("ETag", tag)
        self.send_header("Content-Length", str(stop - start))
        if found:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{size}")
        self.end_headers()
        self.wfile.flush()
        if body:
            self._send(path, start, stop)
        return None

    def _send(self, path: pathlib.Path, at: int, stop: int) -> None:
        with open(path, "rb") as file:
            while at < stop:
                count = min(SLICE_BYTES, stop - at) if self.total.rate else stop - at
                self.total.wait(count)
                at += os.sendfile(self.connection.fileno(), file.fileno(), at, count)

    def _refuse(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads, allow_reuse_address, request_queue_size = True, True, 512


class Paced:
    """`with Paced(folder, …) as origin:` serves what lies in `origin.root`; its log is `folder/paced.log`."""

    def __init__(
        self, folder: pathlib.Path, *, first_byte_s: float = 0, connection_rate: float = 0, total_rate: float = 0,
        most_at_once: int = 0,
    ) -> None:  # fmt: skip
        self.folder, self.root = folder, folder / "root"
        (self.port,) = free_ports(1)
        self._said = [first_byte_s, connection_rate, total_rate, most_at_once]
        self._child: Child | None = None

    @property
    def endpoint_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self.root.mkdir(parents=True, exist_ok=True)
        argv = [sys.executable, "-m", "tests.servers.paced", str(self.root), str(self.port), *map(str, self._said)]
        self._child = Child(argv, log=self.folder / "paced.log", env=clean_environment(), cwd=pathlib.Path(__file__).parents[2])
        (self.root / "alive").write_bytes(b"")
        self._child.wait_ready(self._answers)
        return self

    def _answers(self) -> bool:
        with urllib.request.urlopen(f"{self.endpoint_url}/alive", timeout=2) as response:
            return bool(response.status == 200)

    def __exit__(self, *_: object) -> None:
        if self._child is not None:
            self._child.kill()


def main() -> None:
    root, port, first_byte, connection_rate, total_rate, most = sys.argv[1:]
    _Handler.root, _Handler.first_byte_s = pathlib.Path(root), float(first_byte)
    _Handler.connection_rate, _Handler.most_at_once = float(connection_rate), int(most)
    _Handler.total = Pace(float(total_rate))
    with _Server(("127.0.0.1", int(port)), _Handler) as server:
        server.serve_forever()


if __name__ == "__main__":
    main()
