"""A scripted daemon, in memory or on a socket, for every test of the client."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from hotshelf.cli import hotshelf
from hotshelf.client import Client
from hotshelf.keeper import Keeper

from . import page_cache
from .fakes import FakeDaemon, UnixServer, socket_path

Run = Callable[..., Result]


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOTSHELF_SOCKET", "HOTSHELF_STORE", "PIPELINE_STORE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def daemon(tmp_path: Path) -> FakeDaemon:
    return FakeDaemon(tmp_path / "shelf")


@pytest.fixture
def server(daemon: FakeDaemon, tmp_path: Path) -> Iterator[UnixServer]:
    path = socket_path(tmp_path)
    server = UnixServer(path, daemon).start()
    yield server
    server.stop()
    shutil.rmtree(path.parent, ignore_errors=True)


@pytest.fixture
def client(server: UnixServer) -> Client:
    """Its keeper stops with the last lease."""
    client = Client(server.path)
    client._keepers[""] = Keeper(client.transport, linger_s=0)
    return client


@pytest.fixture
def run(server: UnixServer) -> Run:
    """Runs the `hotshelf` command against the scripted daemon."""

    def run(*words: str) -> Result:
        return CliRunner().invoke(hotshelf, ["--socket", str(server.path), *words], prog_name="hotshelf")

    return run


@pytest.fixture
def cold_disk(tmp_path: Path) -> None:
    """Skips where a file cannot be taken out of the page cache: on a tmpfs, say."""
    page_cache.written(tmp_path / "probe", 1 << 20)
