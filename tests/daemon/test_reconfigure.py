"""A changed configuration: followed by the daemon that runs, without a lease lost; one that cannot be used changes nothing."""

from __future__ import annotations

import json
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from tests.conftest import BUCKET
from tests.daemon.conftest import MakeDaemon, Put
from tests.daemon.looking import granted, rows
from tests.daemon_process import Daemon
from tests.servers.seaweedfs import SeaweedFS
from tests.waiting import wait_until

NOT_FOLLOWED = "the configuration is not followed; the one before holds"
TREE = {"a.safetensors": b"a" * 300}


def events(daemon: Daemon, name: str) -> list[dict[str, Any]]:
    return [line for line in map(json.loads, daemon.log_text.splitlines()) if line["event"] == name]


@pytest.fixture
def daemon(make_daemon: MakeDaemon, seaweedfs: SeaweedFS) -> Daemon:
    return make_daemon(start=False, origins={"weed": seaweedfs.settings(BUCKET)})


def edited(file: pathlib.Path, text: str) -> None:
    file.write_text(text)


def renamed(file: pathlib.Path, text: str) -> None:
    new = file.with_suffix(".new")
    new.write_text(text)
    new.rename(file)


def mounted(folder: pathlib.Path, number: int, text: str) -> None:
    """As the kubelet keeps a ConfigMap: the file is a link into `..data`, itself a link that a rename exchanges."""
    (folder / f"..{number}").mkdir(parents=True)
    (folder / f"..{number}" / "hotshelf.yaml").write_text(text)
    (folder / "..data_tmp").symlink_to(f"..{number}")
    (folder / "..data_tmp").rename(folder / "..data")
    shutil.rmtree(folder / f"..{number - 1}", ignore_errors=True)
    if number == 1:
        (folder / "hotshelf.yaml").symlink_to("..data/hotshelf.yaml")


def config(daemon: Daemon) -> pathlib.Path:
    return daemon.folder / "hotshelf.yaml"


def with_model(daemon: Daemon, source: str) -> str:
    return yaml.safe_dump({**daemon.settings, "models": {"new": {"source": source}}})


@pytest.mark.parametrize("change", [edited, renamed])
def test_a_changed_file_is_followed_by_the_same_process_and_leases_stay(
    daemon: Daemon, put: Put, change: Callable[[pathlib.Path, str], None]
) -> None:
    daemon.start()
    source = put(TREE)
    held, pid = granted(daemon.acquire(source)), daemon.pid
    assert daemon.acquire("new").status >= 400
    change(config(daemon), with_model(daemon, source))
    wait_until(lambda: len(events(daemon, "ready")) == 2)
    assert granted(daemon.acquire("new"))["revision"] == held["revision"]
    assert daemon.pid == pid
    (told,) = events(daemon, "the configuration has changed")
    assert told["changed"]["models.new.source"] == f"nothing → {source}"
    assert rows(daemon, "SELECT id FROM v_leases WHERE id = ?", held["id"])


def test_a_configmap_that_the_kubelet_exchanges_is_followed(daemon: Daemon, put: Put) -> None:
    source = put(TREE)
    mounted(daemon.folder, 1, "")
    daemon.start()  # its configuration is written through the link
    mounted(daemon.folder, 2, "origins: {")
    wait_until(lambda: bool(events(daemon, NOT_FOLLOWED)))
    mounted(daemon.folder, 3, with_model(daemon, source))
    wait_until(lambda: len(events(daemon, "ready")) == 2)
    granted(daemon.acquire("new"))


def is_followed(daemon: Daemon) -> bool:
    """What the alert looks at."""
    return "\nhotshelf_config_last_reload_successful 1.0\n" in daemon.get_http("/metrics").body


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ("origins: {", "not YAML"),
        ({"budjet": "1GiB"}, "budjet"),
        ({"budget": 1 << 60}, "the file system of"),
        ({"listen": "127.0.0.1:1"}, "listen cannot change under a daemon that runs"),
        ({"bundles": {"key_file": "/nowhere"}}, "/nowhere"),
        ({"origins": {"weed": {"verify": "required", "keys": ["/nowhere.pem"]}}}, "/nowhere.pem"),
        ({"origins": {"weed": {"secret_access_key_file": "/nowhere"}}}, "/nowhere"),
        ("", "empty"),
        (None, "cannot read"),
    ],
    ids=["no YAML", "unknown", "too much", "another place", "no key", "no keys", "no secret", "empty", "gone"],
)
def test_one_that_cannot_be_used_is_logged_and_the_one_before_holds(
    daemon: Daemon, put: Put, wrong: str | dict[str, Any] | None, why: str
) -> None:
    daemon.start()
    source = put(TREE)
    granted(daemon.acquire(source))
    assert is_followed(daemon)
    if wrong is None:
        config(daemon).unlink()
    else:
        config(daemon).write_text(wrong if isinstance(wrong, str) else yaml.safe_dump({**daemon.settings, **wrong}))
    wait_until(lambda: bool(events(daemon, NOT_FOLLOWED)))
    assert why in events(daemon, NOT_FOLLOWED)[-1]["why"]
    assert not is_followed(daemon)
    granted(daemon.acquire(source))
    assert len(events(daemon, "ready")) == 1
    config(daemon).write_text(with_model(daemon, source))
    wait_until(lambda: len(events(daemon, "ready")) == 2)
    granted(daemon.acquire("new"))
    assert is_followed(daemon)


def test_another_secret_is_followed_and_never_told(daemon: Daemon) -> None:
    daemon.start()
    (origin,) = daemon.settings["origins"].values()
    other = {**origin, "secret_access_key": "canary-77c1"}
    config(daemon).write_text(yaml.safe_dump({**daemon.settings, "origins": {"weed": other}}))
    wait_until(lambda: len(events(daemon, "ready")) == 2)
    assert "canary-77c1" not in daemon.log_text


def test_one_that_breaks_while_the_daemon_starts_over_is_not_what_it_starts_with(daemon: Daemon, put: Put) -> None:
    daemon.start()
    source = put(TREE)
    config(daemon).write_text(with_model(daemon, source))
    wait_until(lambda: bool(events(daemon, "the configuration has changed")))
    config(daemon).write_text("origins: {")
    wait_until(lambda: len(events(daemon, "ready")) == 2 and bool(events(daemon, NOT_FOLLOWED)))
    granted(daemon.acquire("new"))


def test_one_that_names_a_secret_is_followed_when_the_secret_comes(daemon: Daemon) -> None:
    daemon.start()
    secret = daemon.folder / "secret"
    (origin,) = daemon.settings["origins"].values()
    other = {**origin, "secret_access_key_file": str(secret)}
    del other["secret_access_key"]
    config(daemon).write_text(yaml.safe_dump({**daemon.settings, "origins": {"weed": other}}))
    wait_until(lambda: bool(events(daemon, NOT_FOLLOWED)))
    secret.write_text("canary-1f22")
    wait_until(lambda: len(events(daemon, "ready")) == 2)
    assert len(events(daemon, NOT_FOLLOWED)) == 1
    assert "canary-1f22" not in daemon.log_text


def test_a_file_that_says_the_same_and_its_neighbours_change_nothing(daemon: Daemon, put: Put) -> None:
    """Each is looked at: the last change of all is noticed only after them."""
    daemon.start()
    source, said = put(TREE), config(daemon).read_text()
    for text in (said, f"# another comment\n{said}"):
        config(daemon).write_text(text)
        looked_at(daemon)
    (daemon.folder / "neighbour.yaml").write_text("budget: 1")
    looked_at(daemon)
    assert len(events(daemon, "ready")) == 1
    config(daemon).write_text(with_model(daemon, source))
    wait_until(lambda: len(events(daemon, "ready")) == 2)
    assert len(events(daemon, "the configuration has changed")) == 1


def looked_at(daemon: Daemon) -> None:
    """What is wrong is found after what came before it; then it is right again."""
    before, told = config(daemon).read_text(), len(events(daemon, NOT_FOLLOWED))
    config(daemon).write_text("origins: {")
    wait_until(lambda: len(events(daemon, NOT_FOLLOWED)) > told)
    config(daemon).write_text(before)
    wait_until(lambda: is_followed(daemon))
