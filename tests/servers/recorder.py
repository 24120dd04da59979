"""A recording reverse proxy to put in front of an origin: what was asked, how many bytes it cost, and misfortune on demand.

It hands requests on byte for byte, the Host header included, so signatures stay valid. Threads of this process.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Self
from urllib.parse import urlsplit

from tests.servers.book import Book
from tests.servers.http_stream import Stream
from tests.servers.ports import free_ports
from tests.servers.relay import CutOff, Relay, reset


class Recorder(Book):
    """`with Recorder(origin.endpoint_url) as recorder:`; clients use `recorder.endpoint_url`."""

    def __init__(self, upstream_url: str) -> None:
        super().__init__()
        parts = urlsplit(upstream_url)
        self._upstream = (parts.hostname or "127.0.0.1", parts.port or 80)
        (self.port,) = free_ports(1)
        self._listener: socket.socket | None = None
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._threads: set[threading.Thread] = set()

    @property
    def endpoint_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Listens; on the same port each time."""
        self.stopping.clear()
        self._listener = socket.create_server(("127.0.0.1", self.port), backlog=512)
        self._spawn(self._accept, self._listener)

    def stop(self) -> None:
        """Refuses new connections, resets those there are and ends every stall. What was recorded stays."""
        self.stopping.set()
        self.resume()
        with self._lock:
            waiting = list(self._threads)
            for sock in self._open:
                reset(sock)
                _wake(sock)
            if self._listener is not None:
                _wake(self._listener)
        for thread in waiting:
            if thread is not threading.current_thread():
                thread.join(30)
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    @contextlib.contextmanager
    def down(self) -> Iterator[None]:
        """Off for the length of the block."""
        self.stop()
        try:
            yield
        finally:
            self.start()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _spawn(self, work: Callable[[socket.socket], None], sock: socket.socket) -> None:
        def run() -> None:
            try:
                work(sock)
            finally:
                with self._lock:
                    self._threads.discard(threading.current_thread())

        thread = threading.Thread(target=run, daemon=True, name="recorder")
        with self._lock:
            self._threads.add(thread)
            thread.start()  # under the lock: `stop` joins whatever is in the set

    def _accept(self, listener: socket.socket) -> None:
        while not self.stopping.is_set():
            try:
                client, _ = listener.accept()
            except OSError:
                return
            self._spawn(self._serve, client)

    @contextlib.contextmanager
    def _held(self, sock: socket.socket) -> Iterator[socket.socket]:
        """Known to `stop` while in use, closed afterwards."""
        with self._lock:
            self._open.add(sock)
        try:
            if self.stopping.is_set():
                reset(sock)
                raise CutOff
            yield sock
        finally:
            with self._lock:
                self._open.discard(sock)
            sock.close()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError, CutOff), contextlib.ExitStack() as ours:
            ours.enter_context(self._held(client))

            def connect() -> socket.socket:
                return ours.enter_context(self._held(socket.create_connection(self._upstream, timeout=60)))

            Relay(self, Stream(client), connect).run()


def _wake(sock: socket.socket) -> None:
    """Whoever is blocked on this socket, in another thread, gets an error."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
