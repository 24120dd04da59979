"""`hf://` sources through a real daemon: what is fetched, what is believed, what is asked when, and who is told the token."""

from __future__ import annotations

import json
import pathlib
import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from hotshelf_daemon.config import Settings
from hotshelf_daemon.doctor import examine
from tests import objects
from tests.daemon.conftest import SEGMENT, MakeDaemon
from tests.daemon.looking import assert_nothing_visible, blobs_on_disk, granted, refused, rows, tree_of
from tests.daemon.test_index import VIEWS
from tests.daemon_process import Daemon
from tests.servers.hub import Hub
from tests.servers.threaded import Ask, Reply
from tests.waiting import wait_until

REPO, SOURCE = "org/name", "hf://org/name"
TREE = objects.model("hub", unet=3 * SEGMENT + 1_000)
UNET = "unet/diffusion_pytorch_model.safetensors"
REVISION = objects.manifest_of(TREE).revision
TOKEN = "hf_canary-81d0"


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub(page_entries=4) as running:
        running.push(REPO, TREE)
        yield running


Start = Callable[..., Daemon]


@pytest.fixture
def start(make_daemon: MakeDaemon, hub: Hub) -> Start:
    """A daemon that asks the hub; keywords are settings."""

    def begin(token: str | None = None, **settings: object) -> Daemon:
        fetch = {"segment_bytes": SEGMENT, "connections": 4, "attempts": 3}
        given = {
            "hf": {"endpoint": hub.endpoint_url, **({"token": token} if token else {})},
            "fetch": fetch,
            "revalidate_s": 600,
        }
        return make_daemon(**{**given, **settings})

    return begin


# ---- content


def test_a_repository_is_leased_whole_and_its_bytes_come_once(hub: Hub, start: Start) -> None:
    daemon = start()
    with ThreadPoolExecutor(4) as pool:
        leases = [granted(reply) for reply in pool.map(daemon.acquire, [SOURCE] * 4)]
    assert {lease["revision"] for lease in leases} == {REVISION}
    assert tree_of(daemon, leases[0]) == TREE
    asked = [ask.headers.get("range") for ask in hub.asked_of("cdn", objects.Digest.of(TREE[UNET]).hex)]
    assert len(asked) == len(set(asked)) > 1


def test_what_is_held_is_leased_with_the_hub_down_and_what_is_pinned_asks_it_nothing(hub: Hub, start: Start) -> None:
    daemon, commit = start(revalidate_s=0.001), hub.repos[REPO].refs["main"]
    pinned = [f"{SOURCE}@{commit}", f"{SOURCE}@{REVISION}"]
    for source in pinned:
        assert granted(daemon.acquire(source))["revision"] == REVISION
    asked = len(hub.asked)
    for source in pinned * 3:
        granted(daemon.acquire(source))
    assert len(hub.asked) == asked
    granted(daemon.acquire(SOURCE))
    with hub.down():
        daemon.restart()
        for source in (SOURCE, *pinned):
            assert tree_of(daemon, granted(daemon.acquire(source))) == TREE


def test_a_branch_that_moves_becomes_a_new_revision_and_its_shared_files_are_not_fetched_again(hub: Hub, start: Start) -> None:
    daemon = start(revalidate_s=0.001)
    first = granted(daemon.acquire(SOURCE))
    changed = {**TREE, "model_index.json": TREE["model_index.json"] + b"\n"}
    weights = len(hub.asked_of("cdn"))
    hub.push(REPO, changed)

    def moved() -> bool:
        return bool(granted(daemon.acquire(SOURCE))["revision"] == objects.manifest_of(changed).revision)

    wait_until(moved)
    assert tree_of(daemon, granted(daemon.acquire(SOURCE))) == changed
    assert tree_of(daemon, first) == TREE
    assert len(hub.asked_of("cdn")) == weights


def test_a_branch_that_stays_is_asked_for_its_commit_and_for_nothing_else(hub: Hub, start: Start) -> None:
    daemon = start(revalidate_s=0.001)
    granted(daemon.acquire(SOURCE))
    before, others = len(hub.asked), len(hub.asked_of("hub", "/tree/|/resolve/"))
    wait_until(lambda: granted(daemon.acquire(SOURCE)) and len(hub.asked) > before + 3)
    assert len(hub.asked_of("hub", "/tree/|/resolve/")) == others
    assert rows(daemon, "SELECT * FROM v_events WHERE kind = 'flipped'") == []


@pytest.mark.parametrize("ref", ["v1.0", "refs/pr/1", "a branch's"])
def test_another_revision_is_another_snapshot(hub: Hub, start: Start, ref: str) -> None:
    if " " in ref:
        refused(start().acquire(f"{SOURCE}@{ref}"), "invalid_request")
        return
    other = objects.model("other")
    hub.push(REPO, other, branch=ref)
    daemon = start()
    assert tree_of(daemon, granted(daemon.acquire(f"{SOURCE}@{ref}"))) == other
    assert tree_of(daemon, granted(daemon.acquire(SOURCE))) == TREE


def test_patterns_and_policy_choose_before_a_byte_is_fetched(hub: Hub, start: Start) -> None:
    hub.push(REPO, {**TREE, "old.ckpt": b"\x80\x04pickle", "run.py": b"import os", "sub/x.bin": b"\x80\x04"})
    lease = granted(
        (daemon := start()).acquire(SOURCE, allow_patterns=["unet/*", "*.py", "*.ckpt"], ignore_patterns=["*/config.json"])
    )
    assert tree_of(daemon, lease) == {UNET: TREE[UNET]}
    assert {skip["path"]: skip["reason"] for skip in lease["skipped"]} == {
        "old.ckpt": "pickle by name",
        "run.py": "python code",
    }
    assert {ask.path.partition("/resolve/")[2].partition("/")[2] for ask in hub.asked_of("hub", "/resolve/")} == {UNET}


def test_a_pickle_under_another_name_is_left_out_when_it_is_seen(hub: Hub, start: Start) -> None:
    hub.push(REPO, {**TREE, "notes.txt": pickle.dumps({"weight": [1.0] * 9})})
    lease = granted((daemon := start()).acquire(SOURCE))
    assert tree_of(daemon, lease) == TREE
    assert [skip["path"] for skip in lease["skipped"]] == ["notes.txt"]


def test_an_empty_file_and_odd_names_come_as_they_are(hub: Hub, start: Start) -> None:
    tree = {**TREE, "empty.txt": b"", "a b/q?x=1#%20.json": b"{}", "ü/文件.safetensors": objects.safetensors("odd", 300)}
    hub.push(REPO, tree)
    daemon = start()
    assert tree_of(daemon, granted(daemon.acquire(SOURCE))) == tree


def test_what_two_repositories_share_is_fetched_once(hub: Hub, start: Start) -> None:
    hub.push("other/copy", TREE)
    daemon = start()
    granted(daemon.acquire(SOURCE))
    weights = len(hub.asked_of("cdn"))
    assert granted(daemon.acquire("hf://other/copy"))["revision"] == REVISION
    assert len(hub.asked_of("cdn")) == weights


# ---- wrong answers


def test_wrong_bytes_once_are_fetched_again(hub: Hub, start: Start) -> None:
    hub.corrupt(times=1)
    hub.corrupt(server="hub", path="cache.*/vae/config.json", times=1)
    daemon = start()
    assert tree_of(daemon, granted(daemon.acquire(SOURCE))) == TREE
    assert 'hotshelf_verify_failures_total{reason="digest"} 2.0' in daemon.get_http("/metrics").body


@pytest.mark.parametrize(("server", "path"), [("cdn", ""), ("hub", "cache.*/model_index.json")])
def test_wrong_bytes_for_ever_are_refused_and_nothing_is_visible(hub: Hub, start: Start, server: str, path: str) -> None:
    hub.corrupt(server=server, path=path)
    daemon = start()
    refused(daemon.acquire(SOURCE), "integrity_error")
    assert_nothing_visible(daemon)
    hub.heal()
    assert tree_of(daemon, granted(daemon.acquire(SOURCE))) == TREE


def test_a_download_that_is_cut_off_is_gone_on_with(hub: Hub, start: Start) -> None:
    def cut(_ask: Ask, reply: Reply) -> None:
        reply.cut = 1_000

    hub.misdeed(cut, server="cdn", times=2)
    daemon = start()
    assert tree_of(daemon, granted(daemon.acquire(SOURCE))) == TREE


def test_what_would_step_out_of_its_folder_is_refused(hub: Hub, start: Start) -> None:
    hub.push(REPO, {**TREE, "../x.json": b"{}"})
    daemon = start()
    refused(daemon.acquire(SOURCE), "unsafe_content")
    assert_nothing_visible(daemon)


# ---- refusals


@pytest.mark.parametrize(
    ("source", "patterns", "code", "said"),
    [
        ("hf://org/none", None, "not_found", "org/none"), (f"{SOURCE}@none", None, "not_found", "'none'"),
        (f"{SOURCE}@{'0' * 40}", None, "not_found", "0000"), (SOURCE, ["*.gguf"], "not_found", "patterns"),
        (f"{SOURCE}/unet", None, "invalid_request", "allow_patterns"),
        (f"{SOURCE}@sha256:{'0' * 64}", None, "integrity_error", "not"),
    ],
)  # fmt: skip
def test_what_is_not_there_is_refused_by_name(
    hub: Hub, start: Start, source: str, patterns: list[str] | None, code: str, said: str
) -> None:
    problem = refused(start().acquire(source, allow_patterns=patterns), code)
    assert said in problem["detail"] + problem["hint"]


def test_a_hub_that_is_away_is_unavailable_and_worth_a_retry(hub: Hub, start: Start) -> None:
    with hub.down():
        assert refused(start().acquire(SOURCE), "origin_unavailable")["retryable"]


def test_a_hub_that_stumbles_is_asked_again(hub: Hub, start: Start) -> None:
    for path in ("/revision/", "/tree/", "/resolve/"):
        hub.refuse(503, path=path, times=1)
    hub.refuse(429, path="/revision/", times=1, Retry_After="0")
    daemon = start()
    assert tree_of(daemon, granted(daemon.acquire(SOURCE))) == TREE


def test_a_gated_repository_takes_no_room_from_others(hub: Hub, start: Start) -> None:
    hub.push("org/gated", objects.model("gated"))
    hub.gate("org/gated", TOKEN)
    daemon = start(budget=objects.size_of(TREE) + 10_000)
    granted(daemon.acquire(SOURCE))
    for one in rows(daemon, "SELECT id FROM v_leases"):
        daemon.call("DELETE", f"/v1/leases/{one['id']}")
    held = blobs_on_disk(daemon)
    problem = refused(daemon.acquire("hf://org/gated"), "access_denied")
    assert "HF_TOKEN" in problem["hint"]
    assert f"{hub.endpoint_url}/org/gated" in problem["hint"]
    assert blobs_on_disk(daemon) == held


def test_only_repositories_of_the_configuration_are_asked_for(hub: Hub, start: Start) -> None:
    daemon = start(hf={"endpoint": hub.endpoint_url, "repos": ["other/*"]})
    refused(daemon.acquire(SOURCE), "access_denied")
    assert not hub.asked


# ---- the token


def test_the_token_reads_what_is_private_and_is_seen_nowhere_else(hub: Hub, start: Start, tmp_path: pathlib.Path) -> None:
    hub.hide(REPO, TOKEN)
    hub.push("org/gated", TREE)
    hub.gate("org/gated")
    daemon = start(hf={"endpoint": hub.endpoint_url}, env={"HF_TOKEN": TOKEN}, log_level="debug")
    told = [daemon.acquire(SOURCE)]
    assert tree_of(daemon, granted(told[0])) == TREE
    told += [daemon.acquire(source) for source in ("hf://org/gated", "hf://org/none", f"{SOURCE}@none")]
    for status, headers in (
        (401, {"X_Error_Message": TOKEN}),
        (418, {"X_Error_Message": TOKEN}),
        (302, {"Location": f"http://a/?t={TOKEN}"}),
    ):
        hub.refuse(status, path="/other", **headers)
        told.append(daemon.acquire("hf://org/other"))
        hub.heal()
    assert TOKEN in {ask.token for ask in hub.asked_of("hub")}
    assert {ask.token for ask in hub.asked_of("cdn")} == {None}
    told += [daemon.call("GET", f"/v1/{name}") for name in ("status", "health", "snapshots", "transfers")]
    seen = {
        "answers": json.dumps([[reply.body, dict(reply.headers)] for reply in told]),
        "metrics": daemon.get_http("/metrics").body,
        "index": json.dumps([rows(daemon, f"SELECT * FROM {view}") for view in VIEWS]),
    }
    assert daemon.terminate() == 0
    seen["log"] = daemon.log_text
    assert [where for where, text in seen.items() if TOKEN in text] == []
    assert "Signature=signed" not in "".join(seen.values())


# ---- configured


def test_a_configured_name_is_a_repository_and_resolves_before_it_is_fetched(hub: Hub, start: Start) -> None:
    weights = {"source": SOURCE, "allow_patterns": ["*.safetensors"], "preload": True}
    daemon = start(models={"w": weights, "all": {"source": SOURCE}})
    wanted = {path: data for path, data in TREE.items() if path.endswith(".safetensors")}
    wait_until(lambda: len(rows(daemon, "SELECT * FROM v_snapshots WHERE state = 'ready'")) == 1)
    assert tree_of(daemon, granted(daemon.acquire("w"))) == wanted
    [known] = granted(daemon.call("POST", "/v1/resolve", {"source": SOURCE, "allow_patterns": ["*.safetensors"]}))["resolved"]
    assert known["revision"] == objects.manifest_of(wanted).revision
    [unknown] = granted(daemon.call("POST", "/v1/resolve", {"sources": ["all"]}))["resolved"]
    assert (unknown["held"], unknown["revision"]) == (False, None)


def test_the_doctor_asks_the_hub_for_each_name(hub: Hub, tmp_path: pathlib.Path) -> None:
    def findings(source: str, **hf: object) -> list[str]:
        settings = Settings.model_validate(
            {"store": str(tmp_path), "socket": str(tmp_path / "s"), "hf": {"endpoint": hub.endpoint_url, **hf},
             "models": {"m": {"source": source}}},
        )  # fmt: skip
        return [f"{one.message} {one.fix}" for one in examine(settings) if one.check.startswith("origin 127.0.0.1")]

    assert findings(SOURCE) == []
    hub.hide(REPO, TOKEN)
    assert findings(SOURCE, token=TOKEN) == []
    for source, hf, said in (
        (SOURCE, {}, "HF_TOKEN"), (SOURCE, {"token": "hf_wrong"}, "does not accept the token"),
        (SOURCE, {"repos": ["x/*"]}, "none of the configured"), ("hf://org/name@none", {"token": TOKEN}, "'none'"),
    ):  # fmt: skip
        [finding] = findings(source, **hf)
        assert said in finding
    with hub.down():
        [finding] = findings(SOURCE)
        assert "cannot be reached" in finding
