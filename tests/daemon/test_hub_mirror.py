"""The Hugging Face mirror: the hub's own clients, unmodified, against the shelf."""

from __future__ import annotations

import contextlib
import http.client
import json
import pathlib
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests import objects
from tests.conftest import BUCKET
from tests.daemon import mirroring
from tests.daemon.conftest import MakeDaemon, Put
from tests.daemon.looking import rows
from tests.daemon.mirroring import REPO, TOKEN, TREE, UNET, Start, asked
from tests.daemon_process import Daemon
from tests.servers.child import clean_environment
from tests.servers.hub import Hub
from tests.servers.seaweedfs import SeaweedFS


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub(page_entries=4) as running:
        running.push(REPO, TREE)
        yield running


@pytest.fixture
def start(make_daemon: MakeDaemon, hub: Hub) -> Start:
    def begin(**settings: Any) -> Daemon:
        return make_daemon(**{**mirroring.settings(hub), **settings})

    return begin


def client(daemon: Daemon, folder: pathlib.Path, code: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Code of somebody who has HF_ENDPOINT and HF_TOKEN, and a cache of its own."""
    environment = clean_environment(
        HOME=str(folder), HF_HOME=str(folder / "hf"), HF_TOKEN=TOKEN, HF_ENDPOINT=f"http://{daemon.settings['page_listen']}"
    )
    argv = [sys.executable, "-c", code, *words]
    return subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=240)


def ran(daemon: Daemon, folder: pathlib.Path, code: str, *words: str) -> str:
    done = client(daemon, folder, code, *words)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


SNAPSHOT = "import sys, huggingface_hub as h; print(h.snapshot_download(sys.argv[1], **eval(sys.argv[2])))"

# ---- the hub's own clients


@pytest.mark.torch
def test_a_snapshot_is_downloaded_through_it_and_again_with_the_hub_away(
    hub: Hub, start: Start, tmp_path: pathlib.Path
) -> None:
    daemon = start()
    assert objects.read(ran(daemon, tmp_path / "a", SNAPSHOT, REPO, "{}")) == TREE
    once = len(hub.asked_of("cdn"))
    assert objects.read(ran(daemon, tmp_path / "b", SNAPSHOT, REPO, "{}")) == TREE
    assert len(hub.asked_of("cdn")) == once
    with hub.down():
        daemon.restart()
        assert objects.read(ran(daemon, tmp_path / "c", SNAPSHOT, REPO, "{}")) == TREE
        commit = hub.repos[REPO].refs["main"]
        assert objects.read(ran(daemon, tmp_path / "d", SNAPSHOT, REPO, f"dict(revision={commit!r})")) == TREE


@pytest.mark.torch
def test_only_what_is_asked_for_is_fetched(hub: Hub, start: Start, tmp_path: pathlib.Path) -> None:
    daemon = start()
    some = objects.read(ran(daemon, tmp_path, SNAPSHOT, REPO, "dict(allow_patterns=['vae/*'])"))
    assert some == {path: data for path, data in TREE.items() if path.startswith("vae/")}
    assert not hub.asked_of("cdn", objects.Digest.of(TREE[UNET]).hex)


@pytest.mark.torch
def test_a_configured_name_of_a_bucket_is_a_repository_too(
    start: Start, seaweedfs: SeaweedFS, put: Put, tmp_path: pathlib.Path
) -> None:
    tree = objects.model("bucket")
    models = {"sdxl": {"source": put(objects.published(tree))}}
    daemon = start(origins={"weed": seaweedfs.settings(BUCKET)}, models=models)
    assert objects.read(ran(daemon, tmp_path, SNAPSHOT, "shelf/sdxl", "{}")) == tree


@pytest.mark.torch
@pytest.mark.parametrize(
    ("repo", "more", "error"),
    [("org/none", "{}", "RepositoryNotFoundError"), (REPO, "dict(revision='none')", "RevisionNotFoundError")],
)
def test_what_is_not_there_is_what_clients_of_the_hub_expect(
    start: Start, tmp_path: pathlib.Path, repo: str, more: str, error: str
) -> None:
    done = client(start(), tmp_path, SNAPSHOT, repo, more)
    assert done.returncode != 0
    assert error in done.stderr


@pytest.mark.torch
def test_a_file_that_is_not_there_is_an_entry_not_found(start: Start, tmp_path: pathlib.Path) -> None:
    done = client(start(), tmp_path, "import huggingface_hub as h; h.hf_hub_download('org/name', 'none.json')")
    assert "EntryNotFoundError" in done.stderr


# ---- answers


def test_ranges_are_served_from_the_blob(start: Start) -> None:
    status, headers, body = asked(start(), f"/{REPO}/resolve/main/{UNET}", Range="bytes=100-299")
    assert (status, body) == (206, TREE[UNET][100:300])
    assert headers["content-range"] == f"bytes 100-299/{len(TREE[UNET])}"
    assert headers["etag"] == f'"{objects.Digest.of(TREE[UNET]).hex}"'


@contextlib.contextmanager
def waiting(daemon: Daemon, agent: str) -> Iterator[socket.socket]:
    """The connection of one who has asked for a file."""
    host, _, port = daemon.settings["page_listen"].rpartition(":")
    with socket.create_connection((host, int(port)), timeout=30) as wire:
        wire.sendall(
            f"GET /{REPO}/resolve/main/{UNET} HTTP/1.1\r\nHost: localhost\r\nUser-Agent: {agent}\r\n"
            f"Authorization: Bearer {TOKEN}\r\n\r\n".encode()
        )
        yield wire


def test_who_waits_for_a_file_hears_that_it_is_on_its_way(hub: Hub, start: Start) -> None:
    daemon, held = start(), threading.Event()
    hub.misdeed(lambda _ask, _reply: held.wait(30) and None, server="cdn")
    with waiting(daemon, "hf_hub/2.4") as wire:
        interim = b"HTTP/1.1 100 Continue\r\n\r\n"
        assert wire.recv(len(interim), socket.MSG_WAITALL) == interim
        held.set()
        answer = http.client.HTTPResponse(wire)
        answer.begin()  # which passes over any more of them
        assert (answer.status, answer.read()) == (200, TREE[UNET])


def test_a_client_that_breaks_off_at_interim_answers_gets_none(hub: Hub, start: Start) -> None:
    daemon, held = start(), threading.Event()
    hub.misdeed(lambda _ask, _reply: held.wait(5) and None, server="cdn")
    with waiting(daemon, "node") as wire:
        assert wire.recv(12, socket.MSG_WAITALL) == b"HTTP/1.1 200"


def test_bytes_that_policy_refused_are_not_served_the_second_time_either(hub: Hub, start: Start) -> None:
    hub.push(REPO, {**TREE, "text_encoder/config.json": b'{"auto_map": {"AutoModel": "evil.Model"}}'})
    daemon = start()
    for _ in range(2):
        assert asked(daemon, f"/{REPO}/resolve/main/text_encoder/config.json")[0] == 403
    assert asked(daemon, f"/{REPO}/resolve/main/vae/config.json")[2] == TREE["vae/config.json"]


def test_what_was_not_held_while_the_hub_was_away_is_there_when_it_is_back(hub: Hub, start: Start) -> None:
    daemon, commit = start(), hub.repos[REPO].refs["main"]
    assert asked(daemon, f"/{REPO}/resolve/main/vae/config.json")[0] == 200
    with hub.down():
        daemon.restart()
        listed = json.loads(asked(daemon, f"/api/models/{REPO}/revision/{commit}")[2])
        assert {one["rfilename"] for one in listed["siblings"]} == set(TREE)
        assert asked(daemon, f"/{REPO}/resolve/{commit}/vae/config.json")[2] == TREE["vae/config.json"]
        assert asked(daemon, f"/{REPO}/resolve/{commit}/{UNET}")[0] == 503
    assert asked(daemon, f"/{REPO}/resolve/{commit}/{UNET}")[2] == TREE[UNET]


def test_what_the_mirror_fetches_moves_no_branch_of_the_view(hub: Hub, start: Start) -> None:
    daemon, first = start(), hub.repos[REPO].refs["main"]
    daemon.acquire("hf://org/name")
    later = hub.push(REPO, objects.model("later"))
    assert asked(daemon, f"/{REPO}/resolve/{later}/vae/config.json")[0] == 200
    assert (daemon.store / "hub" / "models--org--name" / "refs" / "main").read_text() == first


def test_a_configured_name_that_was_evicted_is_brought_again_and_its_name_told_to_nobody(
    hub: Hub, start: Start, seaweedfs: SeaweedFS, put: Put
) -> None:
    tree = objects.model("bucket")
    daemon = start(origins={"weed": seaweedfs.settings(BUCKET)}, models={"secret": {"source": put(objects.published(tree))}})
    for _ in range(2):
        assert asked(daemon, "/shelf/secret/resolve/main/vae/config.json")[2] == tree["vae/config.json"]
        daemon.call("DELETE", f"/v1/snapshots/{objects.manifest_of(tree).revision}")
    assert hub.asked == []


def test_head_tells_all_and_fetches_nothing(hub: Hub, start: Start) -> None:
    daemon = start()
    status, headers, body = asked(daemon, f"/{REPO}/resolve/main/{UNET}", method="HEAD")
    assert (status, body) == (200, b"")
    assert headers["content-length"] == headers["x-linked-size"] == str(len(TREE[UNET]))
    assert headers["etag"] == headers["x-linked-etag"] == f'"{objects.Digest.of(TREE[UNET]).hex}"'
    assert headers["x-repo-commit"] == hub.repos[REPO].refs["main"]
    assert rows(daemon, "SELECT * FROM v_blobs") == []


def test_the_tree_has_every_file_with_its_size_and_digest(start: Start) -> None:
    daemon = start()
    entries = json.loads(asked(daemon, f"/api/models/{REPO}/tree/main?recursive=true&expand=false")[2])
    files = {entry["path"]: entry for entry in entries if entry["type"] == "file"}
    assert {path: entry["size"] for path, entry in files.items()} == {path: len(data) for path, data in TREE.items()}
    assert files[UNET]["lfs"]["oid"] == objects.Digest.of(TREE[UNET]).hex
    near = json.loads(asked(daemon, f"/api/models/{REPO}/tree/main")[2])
    assert {entry["path"] for entry in near} == {path.partition("/")[0] for path in TREE}
    assert asked(daemon, f"/api/models/{REPO}/tree/main/none")[0] == 404


def test_small_files_come_together_and_weights_one_by_one(start: Start) -> None:
    daemon = start()
    for path in TREE:
        assert asked(daemon, f"/{REPO}/resolve/main/{path}")[2] == TREE[path]
    large = sum(len(data) > 256 << 10 for data in TREE.values())
    assert len(rows(daemon, "SELECT * FROM v_snapshots")) <= 1 + large
    assert rows(daemon, "SELECT * FROM v_leases") == []


def test_what_executes_is_not_served_and_says_so(hub: Hub, start: Start) -> None:
    hub.push(REPO, {**TREE, "setup.py": b"print()"})
    status, headers, _ = asked(start(), f"/{REPO}/resolve/main/setup.py")
    assert (status, headers["x-error-code"]) == (404, "EntryNotFound")
    assert "setup.py is not served" in headers["x-error-message"]


# ---- who may ask


@pytest.mark.parametrize("token", [None, "wrong", TOKEN + "x", TOKEN[:-1]])
def test_without_its_token_nothing_is_answered(hub: Hub, start: Start, token: str | None) -> None:
    daemon = start()
    for path in (f"/api/models/{REPO}", f"/{REPO}/resolve/main/{UNET}"):
        status, _, body = asked(daemon, path, token=token)
        assert status == 401
        assert TOKEN.encode() not in body
    assert hub.asked_of("hub") == []


def test_another_host_s_name_is_refused(start: Start) -> None:
    daemon = start(page_hosts=["hotshelf"])
    for host, status in (("evil.example:80", 421), ("hotshelf:9465", 200), ("localhost", 200)):
        assert asked(daemon, f"/api/models/{REPO}", Host=host)[0] == status


def test_it_is_off_without_a_token(start: Start) -> None:
    daemon = start(hub_mirror={})
    with pytest.raises(ConnectionRefusedError):
        asked(daemon, f"/api/models/{REPO}")


def test_its_token_is_read_from_a_file_and_told_to_nobody(hub: Hub, start: Start, tmp_path: pathlib.Path) -> None:
    (tmp_path / "token").write_text(TOKEN + "\n")
    daemon = start(hub_mirror={"token_file": str(tmp_path / "token")})
    assert asked(daemon, f"/{REPO}/resolve/main/{UNET}")[2] == TREE[UNET]
    assert {ask.token for ask in hub.asked} == {None}
    assert TOKEN not in daemon.log_text
