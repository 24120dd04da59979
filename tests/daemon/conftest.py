"""Daemons for behaviour tests: one that a module's tests share, and folders that other users of this machine can enter."""

from __future__ import annotations

import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

from tests import objects
from tests.conftest import BUCKET
from tests.daemon_process import Daemon
from tests.servers.recorder import Recorder
from tests.servers.seaweedfs import SeaweedFS

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

Put = Callable[..., str]
MakeDaemon = Callable[..., Daemon]
#: Small, so that small objects come in several segments.
SEGMENT = 256 << 10


@pytest.fixture(scope="module")
def wire(seaweedfs: SeaweedFS) -> Iterator[Recorder]:
    """The recorder that `shared` reads through. What it saw of one test is told apart by prefix."""
    with Recorder(seaweedfs.endpoint_url) as proxy:
        yield proxy


@pytest.fixture(scope="session")
def s3(seaweedfs: SeaweedFS) -> Iterator[S3Client]:
    """A client past every recorder: it takes long to make, so tests share it."""
    with seaweedfs.client() as client:
        yield client


@pytest.fixture
def put(s3: S3Client, bucket: str, prefix: str) -> Put:
    """`put(tree)` uploads below this test's prefix, `put(tree, "-x")` below that name; the source it has become."""

    def upload(tree: objects.Tree, suffix: str = "") -> str:
        objects.upload(s3, bucket, f"{prefix}{suffix}", tree)
        return f"s3://{bucket}/{prefix}{suffix}"

    return upload


@pytest.fixture(scope="module")
def kept_daemon(seaweedfs: SeaweedFS, wire: Recorder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    origins = {"weed": seaweedfs.settings(BUCKET, endpoint_url=wire.endpoint_url)}
    fetch = {"segment_bytes": SEGMENT, "connections": 4, "attempts": 3}
    with Daemon(tmp_path_factory.mktemp("shared"), origins=origins, fetch=fetch) as daemon:
        yield daemon


@pytest.fixture
def shared(kept_daemon: Daemon, wire: Recorder) -> Iterator[Daemon]:
    """A daemon on SeaweedFS through `wire`, the same for all tests of a module: for those that change nothing for others."""
    yield kept_daemon
    wire.heal()


@pytest.fixture
def open_folder() -> Iterator[pathlib.Path]:
    """A folder that every user of this machine may enter."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="hs-open-"))
    os.chmod(folder, 0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)
