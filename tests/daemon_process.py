"""A real hotshelfd as a child process: on a store of its own, asked over its socket, killed in every way there is."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import pathlib
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Self

import yaml

from tests.servers.child import Child, clean_environment
from tests.servers.ports import free_ports


class Reply(NamedTuple):
    """An answer of /v1: `body` is its JSON, or its text when it is none."""

    status: int
    body: Any
    headers: Mapping[str, str]


class UnixConnection(http.client.HTTPConnection):
    """http.client over a Unix socket."""

    def __init__(self, path: str | os.PathLike[str], timeout_s: float = 30.0) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = os.fspath(path)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        try:
            self.sock.connect(self._path)
        except BaseException:
            self.sock.close()
            raise


def call(
    socket_path: str | os.PathLike[str], method: str, target: str, body: Any = None, *,
    headers: Mapping[str, str] | None = None, timeout_s: float = 60.0,
) -> Reply:  # fmt: skip
    """One request on a connection of its own. `body`: bytes go as they are, anything else as JSON."""
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    with contextlib.closing(UnixConnection(socket_path, timeout_s)) as connection:
        connection.request(method, target, data, {"Content-Type": "application/json", **(headers or {})})
        response = connection.getresponse()
        text = response.read().decode()
        try:
            parsed = json.loads(text) if text else None
        except ValueError:
            parsed = text
        return Reply(response.status, parsed, {name.lower(): value for name, value in response.getheaders()})


class Daemon:
    """`with Daemon(folder, origins={…}) as daemon:` starts it, waits until it answers, and kills it at the end.

    Keywords are configuration, as in the YAML file. `store` and `listen` are chosen unless given. The socket lies in a
    short folder of its own, because its path may have 107 bytes only.
    """

    def __init__(
        self, folder: pathlib.Path, *, env: Mapping[str, str] | None = None, prefix: tuple[str, ...] = (), **settings: Any
    ) -> None:
        """`env` adds variables; `prefix` goes before the command (strace, setpriv, …)."""
        self.folder = folder
        self.store = pathlib.Path(settings.pop("store", folder / "store"))
        self.settings = {"listen": f"127.0.0.1:{free_ports(1)[0]}", "page_listen": "", **settings}
        self.env, self.prefix = dict(env or {}), prefix
        self._short = tempfile.mkdtemp(prefix="hs-")
        self.socket = pathlib.Path(self._short) / "s"
        self.log = folder / "hotshelfd.log"
        self._child: Child | None = None

    # ---- life

    def launch(self) -> Child:
        """Starts it without waiting: for a daemon that is expected to refuse. `wait_ready` or `wait` come next."""
        self.folder.mkdir(parents=True, exist_ok=True)
        config = self.folder / "hotshelf.yaml"
        config.write_text(yaml.safe_dump(self.settings))
        argv = [
            *self.prefix, sys.executable, "-m", "hotshelf_daemon",
            "--config", str(config), "--store", str(self.store), "--socket", str(self.socket),
        ]  # fmt: skip
        self._child = Child(argv, log=self.log, env=clean_environment(HOME=str(self.folder), **self.env), cwd=self.folder)
        return self._child

    def wait_ready(self, timeout_s: float = 30.0) -> None:
        """Until /v1/health answers 200. Raises StartFailed with the log's end."""
        self._running.wait_ready(self.is_healthy, timeout_s=timeout_s)

    def start(self) -> Self:
        self.launch()
        self.wait_ready()
        return self

    def kill9(self) -> None:
        """SIGKILL; it is gone when this returns."""
        if self._child is not None:
            self._child.kill()
            self._child = None

    def terminate(self, timeout_s: float = 30.0) -> int:
        """SIGTERM, then its exit status."""
        child, self._child = self._running, None
        child.signal(signal.SIGTERM)
        try:
            return child.wait(timeout_s)
        finally:
            child.kill()

    def wait(self, timeout_s: float = 30.0) -> int:
        """The exit status of a daemon that ends by itself."""
        return self._running.wait(timeout_s)

    def restart(self, **settings: Any) -> None:
        """Killed if it still runs, then started on the same store and socket, with changed settings if given."""
        self.kill9()
        self.settings.update(settings)
        self.start()

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Stopped by SIGSTOP for the length of the block."""
        self._running.signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._running.signal(signal.SIGCONT)

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if "COVERAGE_PROCESS_CONFIG" in os.environ and self._child is not None:
            self.terminate()  # what is killed cannot write down what it ran
        self.kill9()
        shutil.rmtree(self._short, ignore_errors=True)

    # ---- looking at it

    @property
    def _running(self) -> Child:
        if self._child is None:
            raise AssertionError("the daemon is not running")
        return self._child

    @property
    def pid(self) -> int:
        return self._running.pid

    @property
    def log_text(self) -> str:
        """Everything it and its predecessors on this folder wrote."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def call(self, method: str, target: str, body: Any = None, **more: Any) -> Reply:
        """One request over its socket; see `call`."""
        return call(self.socket, method, target, body, **more)

    def acquire(self, source: str, **fields: Any) -> Reply:
        """`POST /v1/leases`, blocking."""
        return self.call("POST", "/v1/leases", {"source": source, **fields}, timeout_s=fields.get("timeout_s", 60.0) + 10)

    def get_http(self, target: str) -> Reply:
        """From its TCP listener: /livez, /readyz, /metrics."""
        connection = http.client.HTTPConnection(self.settings["listen"], timeout=10)
        with contextlib.closing(connection):
            connection.request("GET", target)
            response = connection.getresponse()
            return Reply(response.status, response.read().decode(), dict(response.getheaders()))

    def is_healthy(self) -> bool:
        try:
            return self.call("GET", "/v1/health", timeout_s=5).status == 200
        except http.client.HTTPException:
            return False

    @property
    def environment(self) -> dict[str, str]:
        """For a worker process of the tests that is to find this daemon and this store."""
        return clean_environment(HOTSHELF_SOCKET=str(self.socket), PIPELINE_STORE=str(self.store))
