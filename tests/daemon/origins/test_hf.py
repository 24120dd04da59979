"""The Hugging Face Hub as an origin: what it may say, where it may lead, and whom the token is told."""

from __future__ import annotations

import contextlib
import hashlib
import json
import pathlib
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from hotshelf_daemon.config import HubSettings, Settings
from hotshelf_daemon.objects import OriginObject
from hotshelf_daemon.origin import Corrupted, hf
from hotshelf_daemon.origin.hf import HfOrigin, terms_for
from hotshelf_daemon.origin.hub import MAX_ANSWER_BYTES
from hotshelf_daemon.origin.leads import Leads
from hotshelf_shared.errors import (
    AccessDenied,
    BadConfiguration,
    HotshelfError,
    IntegrityError,
    InvalidRequest,
    NotFound,
    OriginUnavailable,
    TooLarge,
)
from hotshelf_shared.manifest import MAX_FILES
from hotshelf_shared.source import Source
from tests import objects
from tests.servers.certificates import certify
from tests.servers.child import clean_environment
from tests.servers.hub import Hub
from tests.servers.threaded import Ask, Reply

REPO = "org/name"
TOKEN = "hf_canary-5c1e"
WEIGHTS = objects.noise("hub", 300_000)
TREE = {"README.md": b"# it", "unet/w.safetensors": WEIGHTS, "unet/config.json": b"{}"}


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub(page_entries=2) as running:
        running.push(REPO, TREE)
        yield running


def origin_at(hub: Hub, **settings: Any) -> HfOrigin:
    return hf.origin_of(Settings(hf=HubSettings(endpoint=hub.endpoint_url, **settings)))


@pytest.fixture
def origin(hub: Hub) -> HfOrigin:
    return origin_at(hub)


def listed(origin: HfOrigin, ref: str = "main", repo: str = REPO) -> dict[str, OriginObject]:
    commit = origin.read(f"{repo}/refs/{ref}", 100)
    assert commit is not None
    at = f"{repo}/{commit.decode()}"
    return {obj.key.removeprefix(f"{at}/"): obj for obj in origin.list(at)}


def bytes_of(origin: HfOrigin, obj: OriginObject, start: int = 0, stop: int | None = None) -> bytes:
    stop = obj.size if stop is None else stop
    buffer, data = memoryview(bytearray(1 << 16)), bytearray()
    with origin.open(obj, start, stop) as body:
        while taken := body.readinto(buffer):
            data += buffer[:taken]
    return bytes(data)


# ---- what a repository is


def test_what_lies_in_lfs_comes_with_its_digest_and_what_git_keeps_with_git_s_name(hub: Hub, origin: HfOrigin) -> None:
    files = listed(origin)
    assert files.keys() == TREE.keys()
    weights, readme = files["unet/w.safetensors"], files["README.md"]
    assert weights.digest == objects.Digest.of(WEIGHTS)
    assert weights.version == objects.Digest.of(WEIGHTS).hex
    assert (readme.digest, len(readme.version), readme.size) == (None, 40, 4)
    assert {path: bytes_of(origin, obj) for path, obj in files.items()} == TREE


@pytest.mark.parametrize("ref", ["main", "v1.0", "refs/pr/1"])
def test_a_branch_a_tag_and_a_commit_are_commits(hub: Hub, origin: HfOrigin, ref: str) -> None:
    commit = hub.push(REPO, {"a.json": b"{}"}, branch=ref)
    hub.push(REPO, {"b.json": b"{}"}, branch="other")
    assert origin.read(f"{REPO}/refs/{ref}", 100) == origin.read(f"{REPO}/refs/{commit}", 100) == commit.encode()
    assert [*listed(origin, ref)] == ["a.json"]


def test_a_revision_that_is_not_there_is_none_and_a_commit_says_so(hub: Hub, origin: HfOrigin) -> None:
    assert origin.read(f"{REPO}/refs/none", 100) is None
    with pytest.raises(NotFound, match="no such commit"):
        [*origin.list(f"{REPO}/{'0' * 40}")]


def test_the_tree_of_a_commit_is_asked_for_once(hub: Hub, origin: HfOrigin) -> None:
    for _ in range(3):
        listed(origin)
    assert len(hub.asked_of("hub", "/revision/")) == 3
    assert len(hub.asked_of("hub", "/tree/")) == 2  # its pages
    hub.push(REPO, {"a.json": b"{}"})
    assert [*listed(origin)] == ["a.json"]


def test_a_repository_that_moved_is_found(hub: Hub, origin: HfOrigin) -> None:
    hub.moved["old/name"] = REPO
    files = listed(origin, repo="old/name")
    assert bytes_of(origin, files["unet/w.safetensors"]) == WEIGHTS


# ---- bytes


def test_what_was_listed_keeps_its_bytes(hub: Hub, origin: HfOrigin) -> None:
    before = listed(origin)
    hub.push(REPO, {"README.md": b"# another"})
    assert {path: bytes_of(origin, obj) for path, obj in before.items()} == TREE
    assert [*listed(origin)] == ["README.md"]


def test_bytes_of_lfs_come_from_where_the_hub_leads_and_the_way_is_asked_for_once(hub: Hub, origin: HfOrigin) -> None:
    weights = listed(origin)["unet/w.safetensors"]
    for start in range(0, 100_000, 10_000):
        assert bytes_of(origin, weights, start, start + 10_000) == WEIGHTS[start : start + 10_000]
    assert (len(hub.asked_of("hub", "/resolve/")), len(hub.asked_of("cdn"))) == (1, 10)


def test_an_address_that_is_good_no_more_is_asked_for_again(hub: Hub, origin: HfOrigin) -> None:
    weights = listed(origin)["unet/w.safetensors"]
    assert bytes_of(origin, weights, 0, 10) == WEIGHTS[:10]
    hub.expire()
    assert bytes_of(origin, weights, 10, 20) == WEIGHTS[10:20]
    assert len(hub.asked_of("hub", "/resolve/")) == 2


def test_a_server_that_hangs_up_is_not_gone_to_again_unasked(hub: Hub, origin: HfOrigin) -> None:
    weights = listed(origin)["unet/w.safetensors"]
    assert bytes_of(origin, weights, 0, 10) == WEIGHTS[:10]
    with hub.down(), pytest.raises(OriginUnavailable):
        bytes_of(origin, weights, 0, 10)
    assert bytes_of(origin, weights, 0, 10) == WEIGHTS[:10]
    assert len(hub.asked_of("hub", "/resolve/")) == 2


def test_leads_are_kept_for_a_while_and_have_a_bound() -> None:
    now = 0.0
    leads = Leads(10, clock=lambda: now)
    leads.note("a", "b")
    leads.note("same", "same")
    assert (leads.of("a"), leads.of("same"), leads.of("none")) == ("b", None, None)
    now = 10.0
    assert leads.of("a") is None
    for number in range(5_000):
        leads.note(f"a{number}", "b")
    assert (leads.of("a0"), leads.of("a4999")) == (None, "b")
    leads.forget("a4999")
    assert leads.of("a4999") is None
    never = Leads(0)
    never.note("a", "b")
    assert never.of("a") is None


def test_a_whole_file_of_git_s_is_held_against_git_s_name(hub: Hub, origin: HfOrigin) -> None:
    config = listed(origin)["unet/config.json"]
    hub.corrupt(server="hub", path="cache.*config.json", times=1)
    with pytest.raises(Corrupted):
        bytes_of(origin, config)
    assert bytes_of(origin, config) == b"{}"


def test_a_hub_that_has_no_name_of_git_s_right_is_not_asked_for_them(hub: Hub, origin: HfOrigin) -> None:
    def misnamed(_ask: Ask, reply: Reply) -> None:
        entries = json.loads(reply.body)
        for entry in entries:
            entry["oid"] = hashlib.sha1(entry["path"].encode()).hexdigest()
        reply.body = json.dumps(entries).encode()

    hub.misdeed(misnamed, path="/tree/")
    files = {path: obj for path, obj in listed(origin).items() if obj.digest is None}
    assert len(files) > 1
    for obj in files.values():
        with contextlib.suppress(Corrupted):
            bytes_of(origin, obj)
    for path, obj in files.items():
        assert bytes_of(origin, obj) == TREE[path]


def test_a_hub_may_leave_out_of_a_tree_what_nobody_needs(hub: Hub, origin: HfOrigin) -> None:
    def sparse(_ask: Ask, reply: Reply) -> None:
        entries = [entry for entry in json.loads(reply.body) if entry["type"] == "file"]
        for entry in entries:
            if "lfs" in entry:
                entry["lfs"] = {"sha256": entry["lfs"]["oid"]}
        reply.body = json.dumps(entries).encode()

    hub.misdeed(sparse, path="/tree/")
    weights = next(obj for path, obj in listed(origin).items() if path.endswith(".safetensors"))
    assert weights.digest is not None


def test_a_file_that_only_xet_has_a_name_for_is_read_all_the_same(hub: Hub, origin: HfOrigin) -> None:
    def in_xet(_ask: Ask, reply: Reply) -> None:
        entries = [{**entry, "oid": "0" * 40, "xetHash": "a" * 64} for entry in json.loads(reply.body)]
        reply.body = json.dumps(entries).encode()

    hub.misdeed(in_xet, path="/tree/")
    readme = listed(origin)["README.md"]
    assert (readme.version, bytes_of(origin, readme)) == ("a" * 64, TREE["README.md"])


def test_html_in_a_repository_is_a_file(hub: Hub, origin: HfOrigin) -> None:
    hub.push(REPO, {"index.html": b"<html>"})

    def as_html(_ask: Ask, reply: Reply) -> None:
        reply.headers["Content-Type"] = "text/html"

    hub.misdeed(as_html, path="index.html")
    assert bytes_of(origin, listed(origin)["index.html"]) == b"<html>"


# ---- who may read


def test_the_token_is_told_to_the_hub_and_to_nobody_it_leads_to(hub: Hub) -> None:
    hub.hide(REPO, TOKEN)
    origin = origin_at(hub, token=TOKEN)
    assert bytes_of(origin, listed(origin)["unet/w.safetensors"]) == WEIGHTS
    assert {ask.token for ask in hub.asked_of("hub")} == {TOKEN}
    assert [ask.token for ask in hub.asked_of("cdn")] == [None]


def test_a_token_that_changes_in_its_file_is_used_from_then_on(hub: Hub, tmp_path: pathlib.Path) -> None:
    hub.hide(REPO, "hf_new")
    (tmp_path / "token").write_text("hf_old")
    origin = origin_at(hub, token="hf_old", token_file=str(tmp_path / "token"))
    with pytest.raises(AccessDenied, match="does not accept the token"):
        listed(origin)
    (tmp_path / "token").write_text("hf_new\n")
    assert listed(origin).keys() == TREE.keys()


@pytest.mark.parametrize("token", [None, TOKEN])
@pytest.mark.parametrize("kind", ["private", "missing", "gated"])
def test_a_repository_that_is_not_shown_says_what_to_do(hub: Hub, kind: str, token: str | None) -> None:
    hub.tokens.add(TOKEN)
    if kind == "private":
        hub.hide(REPO)
    if kind == "gated":
        hub.gate(REPO)
    origin, repo = origin_at(hub, token=token), "org/none" if kind == "missing" else REPO
    with pytest.raises(AccessDenied if kind == "gated" else NotFound) as refusal:
        listed(origin, repo=repo)
    said = str(refusal.value)
    assert repo in said
    assert f"{hub.endpoint_url}/{repo}" in refusal.value.hint
    assert "HF_TOKEN" in refusal.value.hint
    assert TOKEN not in said
    assert not hub.asked_of("hub", "/tree/")  # nothing is made room for


def test_a_gated_repository_lets_in_whom_it_lets_in(hub: Hub) -> None:
    hub.gate(REPO, TOKEN)
    origin = origin_at(hub, token=TOKEN)
    files = listed(origin)
    assert bytes_of(origin, files["README.md"]) == TREE["README.md"]
    hub.repos[REPO].readers.clear()
    with pytest.raises(AccessDenied) as refusal:
        bytes_of(origin, files["README.md"])
    assert f"{hub.endpoint_url}/{REPO}" in refusal.value.hint


def test_a_hub_that_does_not_know_who_may_read_is_asked_for_the_files_all_the_same(hub: Hub, origin: HfOrigin) -> None:
    hub.gate(REPO)
    hub.refuse(404, path="/auth-check")
    assert listed(origin).keys() == TREE.keys()
    hub.heal()
    hub.refuse(503, path="/auth-check")
    with pytest.raises(OriginUnavailable):
        listed(origin)


def test_a_token_that_is_not_valid_is_denied_and_not_repeated(hub: Hub) -> None:
    with pytest.raises(AccessDenied, match="does not accept the token") as refusal:
        listed(origin_at(hub, token=TOKEN))
    assert TOKEN not in str(refusal.value)


def test_only_repositories_that_are_configured_may_be_named() -> None:
    source = Source.parse("hf://org/name@main")
    for repos in ([], ["org/*"], ["other/x", "org/name"], ["*/name"]):
        hf.check_allowed(source, HubSettings(repos=repos))
    for repos in (["org"], ["org/nam"], ["other/*"], ["ORG/name"]):
        with pytest.raises(AccessDenied) as refusal:
            hf.check_allowed(source, HubSettings(repos=repos))
        assert "org/name" in refusal.value.hint


# ---- where it may lead


@pytest.mark.parametrize(
    ("endpoint", "url", "told"),
    [
        ("https://hub.co", "https://hub.co/a", True), ("https://hub.co", "https://HUB.co:443/a", True),
        ("https://hub.co", "https://hub.co:8443/a", False), ("https://hub.co", "https://cdn.example/a", False),
        ("http://hub.co:80", "http://hub.co/a", True), ("http://hub.co", "http://hub.co:81/a", False),
        ("http://hub.co", "https://hub.co/a", False),
    ],
)  # fmt: skip
def test_the_token_is_the_endpoint_s_alone(endpoint: str, url: str, told: bool) -> None:
    terms = terms_for(url, HubSettings.model_validate({"endpoint": endpoint, "token": TOKEN}))
    assert dict(terms.headers) == ({"Authorization": f"Bearer {TOKEN}"} if told else {})
    assert TOKEN not in repr(terms)


@pytest.mark.parametrize(
    ("endpoint", "url"),
    [
        ("https://hub.co", "http://hub.co/a"), ("https://hub.co", "http://cdn.example/a"), ("http://hub.co", "http://cdn.example/a"),
        ("https://hub.co", "ftp://hub.co/a"), ("http://hub.co", "file:///etc/passwd"),
    ],
)  # fmt: skip
def test_nothing_else_is_asked_without_encryption(endpoint: str, url: str) -> None:
    with pytest.raises(AccessDenied):
        terms_for(url, HubSettings(endpoint=endpoint))


def test_a_redirect_to_where_nobody_may_go_is_refused(hub: Hub, origin: HfOrigin) -> None:
    weights = listed(origin)["unet/w.safetensors"]
    for where in ("http://169.254.169.254/latest", "http://elsewhere.example/x", "file:///etc/passwd", "https://u:p@here/x"):
        hub.refuse(302, path="/resolve/", Location=where)
        with pytest.raises(AccessDenied):
            bytes_of(origin, weights)
        hub.heal()


def test_a_hub_over_tls_is_believed_by_its_own_certificate(tmp_path: pathlib.Path) -> None:
    certificate = certify(tmp_path / "pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with Hub(tls=context) as hub:
        hub.push(REPO, TREE)
        origin = origin_at(hub, ca_bundle=str(certificate))
        assert bytes_of(origin, listed(origin)["unet/w.safetensors"]) == WEIGHTS
        with pytest.raises(OriginUnavailable, match="certificate") as refusal:
            listed(origin_at(hub))
        assert not refusal.value.retryable


# ---- odd answers


def saying(body: bytes, **headers: str) -> Callable[[Ask, Reply], None]:
    def spoil(_ask: Ask, reply: Reply) -> None:
        reply.status, reply.body, reply.headers = 200, body, headers

    return spoil


ENTRY = b'{"type":"file","oid":"%s","size":1,"path":"a"}' % (b"0" * 40)


@pytest.mark.parametrize(
    "body",
    [
        b"", b"<html>", b"[1]", b"null", b'"x"', b"[" * 100_000, b'[{"type":"file"}]', ENTRY, b"\xff",
        b"[%s]" % ENTRY.replace(b":1,", b":-1,"), b"[%s]" % ENTRY.replace(b":1,", b":true,"),
        b"[%s]" % ENTRY.replace(b'"a"', b"5"),
        b"[%s]" % ENTRY.replace(b":1,", b':1,"lfs":{"oid":"../x","size":1,"pointerSize":1},'),
        b"[%s]" % ENTRY.replace(b":1,", b':1,"lfs":5,'), b"[%s]" % ENTRY.replace(b":1,", b":1e400,"),
    ],
    ids=lambda body: ascii(body[:40]),
)  # fmt: skip
def test_a_tree_that_is_none_is_an_integrity_error(hub: Hub, origin: HfOrigin, body: bytes) -> None:
    hub.misdeed(saying(body), path="/tree/")
    with pytest.raises(IntegrityError):
        listed(origin)


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"id":"org/name","sha":"main"}', b'{"id":"org/name","sha":5}'])
def test_a_commit_that_is_none_is_an_integrity_error(hub: Hub, origin: HfOrigin, body: bytes) -> None:
    hub.misdeed(saying(body), path="/revision/")
    with pytest.raises(IntegrityError):
        listed(origin)


def test_a_listing_in_circles_ends(hub: Hub, origin: HfOrigin) -> None:
    def circle(ask: Ask, reply: Reply) -> None:
        reply.body, reply.headers["Link"] = b"[]", f'<{hub.endpoint_url}{ask.path}>; rel="next"'

    hub.misdeed(circle, path="/tree/")
    with pytest.raises(IntegrityError, match="circles"):
        listed(origin)


def test_a_repository_of_too_many_files_is_too_large(hub: Hub, origin: HfOrigin) -> None:
    hub.misdeed(saying(b"[%s]" % b",".join([ENTRY] * (MAX_FILES + 1))), path="/tree/")
    with pytest.raises(TooLarge):
        listed(origin)


def test_an_answer_without_an_end_is_not_read_to_it(hub: Hub, origin: HfOrigin) -> None:
    hub.misdeed(saying(b"[" + b" " * MAX_ANSWER_BYTES), path="/tree/")
    with pytest.raises(IntegrityError, match="over"):
        listed(origin)


@pytest.mark.parametrize("link", ["ftp://x/y", "/api/models/x", "http://elsewhere.example/x", "http://[", "http://h:x/"])
def test_a_next_page_elsewhere_is_not_asked_for(hub: Hub, origin: HfOrigin, link: str) -> None:
    hub.misdeed(saying(b"[]", Link=f'<{link}>; rel="next"'), path="/tree/")
    with pytest.raises((IntegrityError, AccessDenied)):
        listed(origin)


REFUSALS = {
    400: IntegrityError, 403: AccessDenied, 418: IntegrityError,
    408: OriginUnavailable, 429: OriginUnavailable, 500: OriginUnavailable, 501: IntegrityError, 503: OriginUnavailable,
}  # fmt: skip


@pytest.mark.parametrize(("status", "error"), REFUSALS.items())
@pytest.mark.parametrize("path", ["/revision/", "/tree/", "/resolve/"])
def test_a_refusal_is_typed_asked_once_and_names_the_hub(
    hub: Hub, origin: HfOrigin, path: str, status: int, error: type[HotshelfError]
) -> None:
    hub.refuse(status, path=path)
    with pytest.raises(error) as refusal:
        bytes_of(origin, listed(origin)["README.md"])
    assert hub.endpoint_url.partition("//")[2] in str(refusal.value)
    assert len(hub.asked_of("hub", path)) == 1


@pytest.mark.parametrize("headers", [{"Retry_After": "7"}, {"RateLimit": '"api";r=0;t=7'}])
def test_a_hub_that_is_asked_too_often_says_how_long_to_wait(hub: Hub, origin: HfOrigin, headers: dict[str, str]) -> None:
    hub.refuse(429, path="/revision/", **headers)
    with pytest.raises(OriginUnavailable) as refusal:
        listed(origin)
    assert refusal.value.retry_after_s == 7


def test_a_name_that_the_hub_gives_nobody_is_no_repository(origin: HfOrigin) -> None:
    with pytest.raises(InvalidRequest):
        origin.read("org/a--b/refs/main", 100)


# ---- the library


def test_the_library_is_imported_by_whoever_needs_it() -> None:
    look = "import sys, hotshelf_daemon.app; print(*{'huggingface_hub', 'httpx2'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, timeout=60, env=clean_environment())
    assert (done.stdout.strip(), done.stderr) == ("", "")


def test_without_the_library_it_is_said_what_to_install(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "hotshelf_daemon.origin.hub", raising=False)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(BadConfiguration) as refusal:
        listed(origin_at(hub))
    assert "hotshelf[daemon]" in refusal.value.hint


def test_what_this_user_has_at_home_is_neither_read_nor_written(
    hub: Hub, origin: HfOrigin, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "token").write_text(TOKEN)
    script = (
        "import sys\nfrom hotshelf_daemon.config import HubSettings, Settings\nfrom hotshelf_daemon.origin import hf\n"
        "origin = hf.origin_of(Settings(hf=HubSettings(endpoint=sys.argv[1])))\n"
        "print(origin.read('org/name/refs/main', 100).decode())\n"
    )
    env = clean_environment(HOME=str(tmp_path), HF_HOME=str(tmp_path), HF_TOKEN=TOKEN, HF_HUB_OFFLINE="1", HF_DEBUG="1")
    argv = [sys.executable, "-c", script, hub.endpoint_url]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, env=env)
    assert (done.stdout.strip(), done.stderr) == (hub.repos[REPO].refs["main"], "")
    assert {ask.token for ask in hub.asked} == {None}
    assert [path.name for path in tmp_path.iterdir()] == ["token"]
