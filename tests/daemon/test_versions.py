"""A client and a daemon of different versions: what they share works on, the rest says which one to upgrade."""

from __future__ import annotations

import pytest

import hotshelf
import hotshelf_shared
from hotshelf import unix
from hotshelf.client import Client
from hotshelf_shared.errors import InvalidRequest
from tests.daemon.looking import granted, refused
from tests.daemon_process import Daemon

OURS = hotshelf.__version__


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Daemon:
    folder = tmp_path_factory.mktemp("versions")
    (folder / "models" / "m").mkdir(parents=True)
    (folder / "models" / "m" / "a.txt").write_text("a")
    with Daemon(folder, roots=[str(folder / "models")]) as running:
        yield running


@pytest.mark.parametrize("theirs", ["0.0.1", "99.0.0"])
def test_a_request_that_only_one_of_them_knows_is_refused_with_both_versions(daemon: Daemon, theirs: str) -> None:
    agent = {"User-Agent": f"hotshelf/{theirs}"}
    for reply, code in (
        (daemon.call("POST", "/v1/leases", {"source": "m", "of_another_age": 1}, headers=agent), "invalid_request"),
        (daemon.call("POST", "/v1/of-another-age", {}, headers=agent), "not_found"),
    ):
        hint = refused(reply, code)["hint"]
        assert f"client is hotshelf {theirs} and the daemon {OURS}" in hint
        assert "upgrade the older one" in hint


def test_nothing_is_said_of_versions_to_a_client_of_the_same_or_to_a_stranger(daemon: Daemon) -> None:
    for agent in (f"hotshelf/{OURS}", "curl/8.0", ""):
        reply = daemon.call("POST", "/v1/leases", {"source": "m", "sauce": 1}, headers={"User-Agent": agent})
        assert "upgrade" not in refused(reply, "invalid_request")["hint"]


def test_the_client_says_its_version_and_works_across_them(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unix, "USER_AGENT", "hotshelf/99.0.0")
    client = Client(daemon.socket, daemon.store)
    source = f"file://{daemon.folder}/models/m"
    with client.acquire(source) as lease:
        assert (lease.path / "a.txt").read_text() == "a"
    with pytest.raises(InvalidRequest) as caught:
        client.acquire(source, allow_patterns=[""])
    assert "99.0.0" in caught.value.hint


def test_client_and_daemon_of_one_distribution_are_of_one_version(daemon: Daemon) -> None:
    assert granted(daemon.call("GET", "/v1/status"))["version"] == OURS == hotshelf_shared.__version__
