"""A shelf that the tests of this folder share; each takes names of its own."""

from __future__ import annotations

import pathlib
import secrets
from collections.abc import Iterator

import pytest

from hotshelf.client import Client
from hotshelf_shared.bundle import BundleName
from tests.daemon_process import Daemon


@pytest.fixture(scope="session")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with Daemon(tmp_path_factory.mktemp("shelf")) as daemon:
        yield daemon


@pytest.fixture
def client(daemon: Daemon) -> Client:
    return Client(daemon.socket, daemon.store)


@pytest.fixture
def name() -> BundleName:
    """Another one for each test."""
    return BundleName.of(f"torch_{secrets.token_hex(8)}", "unet_1")


def lay(folder: pathlib.Path, tree: dict[str, bytes]) -> pathlib.Path:
    for path, data in tree.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return folder


def tree_of(folder: pathlib.Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
