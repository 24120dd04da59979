"""Fixtures that start real servers and daemons, and the rules by which a test is skipped: seldom, and never quietly."""

from __future__ import annotations

import importlib.util
import os
import pathlib
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import hypothesis
import pytest

from tests.daemon_process import Daemon
from tests.servers.child import clean_environment
from tests.servers.moto import Moto
from tests.servers.nginx import Nginx
from tests.servers.recorder import Recorder
from tests.servers.seaweedfs import SeaweedFS

#: The bucket that the S3 fixtures make; tests keep apart by prefix.
BUCKET = "weights"

hypothesis.settings.register_profile("default", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.register_profile("soak", deadline=None, max_examples=5_000, print_blob=True)
#: Of a mutant it is enough to know that it fails: nothing is made smaller.
LOOK = [hypothesis.Phase.explicit, hypothesis.Phase.generate]
hypothesis.settings.register_profile("mutation", deadline=None, derandomize=True, max_examples=40, phases=LOOK)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))

#: Marks whose tests run only when `-m` asks for them.
_ON_REQUEST = ("soak", "pod")


def pytest_configure(config: pytest.Config) -> None:
    for name in set(os.environ) - set(clean_environment()):
        del os.environ[name]  # no test finds an account, a proxy or a daemon that this machine happens to have
    os.environ.update(clean_environment())


def _lacks(item: pytest.Item) -> str | None:
    """What this machine does not have of what a test is marked to need."""
    for mark in item.iter_markers("needs"):
        for program in mark.args:
            if shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") is None:
                return f"the program {program}"
    if item.get_closest_marker("root") and os.geteuid() != 0:
        return "root"
    if item.get_closest_marker("torch") and importlib.util.find_spec("torch") is None:
        return "torch"
    if item.get_closest_marker("gpu") and not pathlib.Path("/dev/nvidia0").exists():
        return "a GPU"
    return None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    asked = config.getoption("markexpr") or ""
    left_out = [item for item in items for mark in _ON_REQUEST if item.get_closest_marker(mark) and mark not in asked]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
    for item in items:
        if what := _lacks(item):
            item.add_marker(pytest.mark.skip(reason=f"this machine lacks {what}"))


@pytest.hookimpl(tryfirst=True)
def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Says in capitals what was not tested here and why."""
    counts: dict[str, int] = {}
    for report in terminalreporter.stats.get("skipped", ()):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if "this machine lacks" in reason:
            what = reason.partition("this machine lacks ")[2]
            counts[what] = counts.get(what, 0) + 1
    for what, count in sorted(counts.items()):
        terminalreporter.write_line(f"NOT TESTED: {count} test(s), because this machine lacks {what}", yellow=True, bold=True)


def _with_bucket(origin: Any, stack: ExitStack) -> Any:
    stack.enter_context(origin)
    with origin.client() as client:
        client.create_bucket(Bucket=BUCKET)
    return origin


@pytest.fixture(scope="session")
def seaweedfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedFS]:
    """SeaweedFS with the bucket `weights`. Whoever stops it starts it again (`with seaweedfs.down():`)."""
    with ExitStack() as stack:
        yield _with_bucket(SeaweedFS(tmp_path_factory.mktemp("weed")), stack)


@pytest.fixture(scope="session")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Moto]:
    """moto's S3 with the bucket `weights`."""
    with ExitStack() as stack:
        yield _with_bucket(Moto(tmp_path_factory.mktemp("moto")), stack)


@pytest.fixture(scope="session")
def nginx(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nginx]:
    """nginx over `nginx.root`. Its tests are marked `needs("nginx")`."""
    with Nginx(tmp_path_factory.mktemp("nginx")) as server:
        yield server


@pytest.fixture
def bucket() -> str:
    """The bucket that `seaweedfs` and `moto` have."""
    return BUCKET


@pytest.fixture
def prefix() -> str:
    """A key prefix that no other test uses, without a slash at its end."""
    return f"p{uuid.uuid4().hex[:12]}"


@pytest.fixture
def recorder(seaweedfs: SeaweedFS) -> Iterator[Recorder]:
    """A recorder of this test's own in front of SeaweedFS."""
    with Recorder(seaweedfs.endpoint_url) as proxy:
        yield proxy


@pytest.fixture
def make_daemon(tmp_path: pathlib.Path) -> Iterator[Callable[..., Daemon]]:
    """`make_daemon(origins={…}, budget=…)` starts one, on `tmp_path`/NAME; all are killed at the end."""
    with ExitStack() as stack:

        def make(name: str = "daemon", *, start: bool = True, **settings: Any) -> Daemon:
            daemon = Daemon(tmp_path / name, **settings)
            stack.callback(daemon.close)
            return daemon.start() if start else daemon

        yield make


@pytest.fixture
def daemon(make_daemon: Callable[..., Daemon], recorder: Recorder, seaweedfs: SeaweedFS) -> Daemon:
    """A daemon that reads the bucket `weights` of SeaweedFS through `recorder`."""
    return make_daemon(origins={"weed": seaweedfs.settings(BUCKET, endpoint_url=recorder.endpoint_url)})
