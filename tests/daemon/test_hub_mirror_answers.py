"""What the mirror says to odd, wrong and hostile questions, and of a hub that answers oddly."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote, urlencode

import pytest

from tests import objects
from tests.daemon import mirroring
from tests.daemon.mirroring import REPO, TOKEN, TREE, UNET, asked
from tests.daemon_process import Daemon
from tests.servers.hub import Hub
from tests.servers.threaded import Ask, Reply

CONFIG = "vae/config.json"


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with Hub() as running:
        running.push(REPO, {**TREE, "setup.py": b"print()"})
        running.push("org/pickled", {"pytorch_model.bin": b"\x80\x02", "config.json": b"{}"})
        running.push("org/gated", TREE)
        running.gate("org/gated", "hf_reader")
        yield running


@pytest.fixture(scope="module")
def daemon(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with Daemon(tmp_path_factory.mktemp("mirror"), **mirroring.settings(hub)) as running:
        yield running


@pytest.mark.parametrize(
    ("path", "code", "said"),
    [
        ("/api/models/org/none", "RepoNotFound", "there is no repository org/none"),
        ("/api/models/org/revision-none", "RepoNotFound", "there is no repository org/revision-none"),
        ("/api/models/org/no--name", "RepoNotFound", "'no--name' is no repository"),
        ("/api/models/org/none/auth-check", "RepoNotFound", "there is no repository org/none"),
        ("/api/models/shelf/none", "RepoNotFound", "no model or LoRA is called 'none'"),
        ("/api/models/gpt2", "RepoNotFound", "gpt2 names no organisation"),
        ("/api/models/gpt2/revision/main", "RepoNotFound", "gpt2 names no organisation"),
        ("/gpt2/resolve/main/config.json", "RepoNotFound", "gpt2 names no organisation"),
        ("/api/datasets/org/name", "RepoNotFound", "no datasets or spaces"),
        ("/spaces/org/name/resolve/main/app.py", "RepoNotFound", "no datasets or spaces"),
        ("/datasets/name/resolve/main/data.csv", "RepoNotFound", "no datasets or spaces"),
        (f"/{REPO}/resolve/none/{CONFIG}", "RevisionNotFound", "no revision 'none'"),
        (f"/{REPO}/resolve/{'a' * 40}/{CONFIG}", "RevisionNotFound", "no revision"),
        (f"/{REPO}/resolve/-main/{CONFIG}", "RevisionNotFound", "no revision '-main'"),
        (f"/{REPO}/resolve/ma%0d%0aX-Evil:1/{CONFIG}", "RevisionNotFound", "no revision"),
        (f"/{REPO}/resolve/sha256:{'a' * 64}/{CONFIG}", "RevisionNotFound", "no revision 'sha256:"),
        (f"/{REPO}/resolve/main@sha256:{'a' * 64}/{CONFIG}", "RevisionNotFound", "no revision 'main@sha256:"),
        (f"/{REPO}/resolve/main/none.json", "EntryNotFound", "has no none.json"),
        (f"/{REPO}/resolve/main/vae/../{CONFIG}", "EntryNotFound", "has no"),
        (f"/{REPO}/resolve/main/%2e%2e/%2e%2e/etc/passwd", "EntryNotFound", "has no"),
        (f"/{REPO}/resolve/main/{CONFIG}%00", "EntryNotFound", "has no vae/config.json"),
        (f"/{REPO}/resolve/main/a%0d%0aX-Evil:%201", "EntryNotFound", "has no a  X-Evil: 1"),
        (f"/{REPO}/resolve/main/{'long/' * 1_000}", "EntryNotFound", "has no long/long"),
        (f"/{REPO}/resolve/main/setup.py", "EntryNotFound", "setup.py is not served: python code"),
        (f"/api/models/{REPO}/commits/main", None, "/api/models/org/name/commits/main: it tells"),
        ("/api/models?author=org", None, "/api/models: it tells"),
        ("/a%0d%0aX-Evil:%201", None, "/a  X-Evil: 1: it tells"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_what_is_not_there_is_said_as_clients_read_it(
    daemon: Daemon, method: str, path: str, code: str | None, said: str
) -> None:
    status, headers, body = asked(daemon, path, method=method)
    assert (status, headers.get("x-error-code")) == (404, code)
    assert said in headers["x-error-message"]
    assert len(headers["x-error-message"]) <= 1_000
    assert "x-evil" not in headers
    if method == "GET":
        assert said in json.loads(body)["error"]


@pytest.mark.parametrize(("repo", "said"), [("org/pickled", "no weights that are safe"), ("org/gated", "is gated")])
def test_a_repository_that_is_refused_is_so_to_clients_too(daemon: Daemon, repo: str, said: str) -> None:
    for path in (f"/api/models/{repo}", f"/{repo}/resolve/main/config.json"):
        status, headers, _ = asked(daemon, path, method="HEAD")
        assert (status, headers["x-error-code"]) == (403, "GatedRepo")  # of others they say that the hub is away
        assert said in headers["x-error-message"]


def test_nobody_is_told_to_make_another_token_their_own(daemon: Daemon) -> None:
    for repo in ("org/none", "org/gated"):
        _, headers, _ = asked(daemon, f"/api/models/{repo}")
        assert "HF_TOKEN" not in headers["x-error-message"]
        assert "with a token of its own" in headers["x-error-message"]


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_nothing_is_written_through_it(daemon: Daemon, method: str) -> None:
    status, headers, _ = asked(daemon, f"/api/models/{REPO}", method=method)
    assert status == 404
    assert f"does not answer {method}" in headers["x-error-message"]
    assert asked(daemon, f"/api/models/{REPO}", method=method, token=None)[0] == 401


def test_what_has_no_answer_has_none_without_the_token_either(daemon: Daemon) -> None:
    assert asked(daemon, "/nothing", token=None)[0] == 401


def test_another_host_s_name_is_refused_as_clients_read_it(daemon: Daemon) -> None:
    status, headers, _ = asked(daemon, f"/api/models/{REPO}", Host="evil.example")
    assert status == 421
    assert "page_hosts" in headers["x-error-message"]


def test_some_paths_are_told_of_by_name(daemon: Daemon) -> None:
    names = [CONFIG, "unet", UNET, "none", "../vae", CONFIG]
    body = urlencode({"paths": names, "expand": "False"}, doseq=True).encode()
    status, _, found = asked(daemon, f"/api/models/{REPO}/paths-info/main", method="POST", body=body)
    assert status == 200
    entries = {entry["path"]: entry for entry in json.loads(found)}
    assert {path: entry["type"] for path, entry in entries.items()} == {CONFIG: "file", "unet": "directory", UNET: "file"}
    assert entries[UNET]["lfs"]["oid"] == objects.Digest.of(TREE[UNET]).hex
    assert json.loads(asked(daemon, f"/api/models/{REPO}/paths-info/main", method="POST", body=b"\xff\0")[2]) == []
    assert asked(daemon, f"/api/models/{REPO}/paths-info/main", method="POST", body=b"x" * (2 << 20))[0] == 413


def test_who_asks_who_they_are_is_one_who_reads(daemon: Daemon) -> None:
    status, _, body = asked(daemon, "/api/whoami-v2")
    assert (status, json.loads(body)["auth"]["accessToken"]["role"]) == (200, "read")
    assert TOKEN.encode() not in body
    assert asked(daemon, f"/api/models/{REPO}/auth-check")[0] == 200
    assert asked(daemon, "/api/models/org/gated/auth-check")[0] == 403


# ---- a hub that answers oddly


def listed(change: Callable[[dict[str, Any]], object]) -> Callable[[Ask, Reply], None]:
    """Of `CONFIG`, in a tree."""

    def spoil(ask: Ask, reply: Reply) -> None:
        if "/tree/" in ask.path:
            entries = json.loads(reply.body)
            for entry in entries:
                if entry["path"] == CONFIG:
                    change(entry)
            reply.body = json.dumps(entries).encode()

    return spoil


@pytest.mark.parametrize("oid", ["", "a\r\nX-Evil: 1", "../../../x", '"', "é" * 40, "x" * 9_000])
def test_a_file_s_name_that_is_none_is_not_passed_on(hub: Hub, daemon: Daemon, oid: str) -> None:
    name = f"org/oid-{abs(hash(oid))}"
    hub.push(name, TREE)
    hub.misdeed(listed(lambda entry: entry.update(oid=oid)), path=name)
    hub.misdeed(listed(lambda entry: entry.update(oid=oid)), path=name)
    try:
        told = asked(daemon, f"/{name}/resolve/main/{CONFIG}", method="HEAD")[1]
        status, headers, body = asked(daemon, f"/{name}/resolve/main/{CONFIG}")
    finally:
        hub.heal()
    assert headers["etag"] == told["etag"]
    assert headers["etag"].strip('"').isalnum()
    assert (status, body) in ((200, TREE[CONFIG]), (502, body))


@pytest.mark.parametrize(
    "change", [{"size": 1 << 70}, {"size": -1}, {"size": None}, {"path": "../../x"}, {"path": "/etc/x"}, {"path": UNET}]
)
def test_a_listing_that_cannot_be_one_is_refused(hub: Hub, daemon: Daemon, change: dict[str, Any]) -> None:
    name = f"org/odd-{abs(hash(str(change)))}"
    hub.push(name, TREE)
    hub.misdeed(listed(lambda entry: entry.update(change)), path=name)
    try:
        for path in (f"/api/models/{name}", f"/{name}/resolve/main/{CONFIG}"):
            assert asked(daemon, path)[0] in (403, 502)
    finally:
        hub.heal()


def test_a_commit_that_disappears_is_a_revision_that_is_not_there(hub: Hub, daemon: Daemon) -> None:
    hub.push("org/moving", TREE)
    hub.refuse(404, path="org/moving/tree", X_Error_Code="RevisionNotFound")
    try:
        assert asked(daemon, "/api/models/org/moving")[1]["x-error-code"] == "RevisionNotFound"
    finally:
        hub.heal()


def test_names_of_files_are_whatever_the_hub_calls_them(hub: Hub, daemon: Daemon) -> None:
    odd = "a b#?%41é+&.json"
    hub.push("org/odd", {odd: b"{}"})
    assert asked(daemon, f"/org/odd/resolve/main/{quote(odd)}")[2] == b"{}"
