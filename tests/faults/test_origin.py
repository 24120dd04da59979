"""Rows 1 to 24 where more than one answer counts: listings, credentials that expire, busy origins, uploads."""

from __future__ import annotations

import json
import pathlib
import threading
from collections.abc import Callable, Iterator

import pytest

from hotshelf_daemon.config import Settings
from hotshelf_daemon.publish import publish
from hotshelf_shared.errors import HotshelfError, IntegrityError
from tests import objects
from tests.daemon.looking import assert_nothing_visible, granted, refused, tree_of
from tests.daemon_process import Daemon
from tests.faults import origin_cases as spoils
from tests.faults.scripted_origin import Ask, Reply, ScriptedOrigin, error
from tests.faults.test_origin_cases import FETCH, SECRET, SEGMENT, settings

MakeDaemon = Callable[..., Daemon]
TREE = objects.model("origin", unet=2 * SEGMENT + 1, text_encoder=9_000, vae=9_000)


@pytest.fixture
def origin() -> Iterator[ScriptedOrigin]:
    with ScriptedOrigin() as server:
        yield server


@pytest.fixture
def daemon(make_daemon: MakeDaemon, origin: ScriptedOrigin) -> Daemon:
    return make_daemon(origins={"scripted": settings(origin.endpoint_url)}, fetch=FETCH, revalidate_s=3_600)


def put(origin: ScriptedOrigin, tree: objects.Tree, folder: str = "m") -> str:
    origin.objects |= {f"{folder}/{path}": data for path, data in tree.items()}
    return f"s3://weights/{folder}"


# ---- what is not there


def test_a_missing_key_is_asked_for_once_and_not_found(daemon: Daemon, origin: ScriptedOrigin) -> None:
    problem = refused(daemon.acquire("s3://weights/none"), "not_found")
    assert not problem["retryable"]
    assert [ask.kind for ask in origin.asked] == ["HEAD", "GET", "LIST"]


def test_a_missing_bucket_is_named(daemon: Daemon, origin: ScriptedOrigin) -> None:
    for kind in ("GET", "LIST", "HEAD"):
        origin.misdeed(spoils.refuse(404, "NoSuchBucket"), on=kind)
    assert "no bucket" in refused(daemon.acquire("s3://weights/none"), "not_found")["detail"]


# ---- listings


def repeat_the_token(_ask: Ask, reply: Reply) -> None:
    first = reply.body.partition(b"<NextContinuationToken>")[0]
    token = b"<NextContinuationToken>same</NextContinuationToken></ListBucketResult>"
    reply.body = first.replace(b"<IsTruncated>false", b"<IsTruncated>true").replace(b"</ListBucketResult>", b"") + token
    reply.headers["Content-Length"] = str(len(reply.body))


def nonsense(_data: bytes) -> bytes:
    return b"<html>" * 3


LISTINGS = [
    pytest.param(repeat_the_token, "integrity_error", id="19 the token repeats"),
    pytest.param(spoils.body(lambda _data: error("InternalError")), "origin_unavailable", id="18 an error in a 200"),
    pytest.param(spoils.body(nonsense), "origin_unavailable", id="18 nonsense in a 200"),
    pytest.param(spoils.body(lambda data: data[:-40]), "origin_unavailable", id="18 half a page"),
    pytest.param(spoils.refuse(403, "AccessDenied"), "access_denied", id="3 no right to list"),
    pytest.param(spoils.ends("fin", 50), "origin_unavailable", id="26 a page cut short"),
    pytest.param(spoils.ends("stall", 50), "origin_unavailable", id="28 a page that stalls"),
]


@pytest.mark.parametrize(("spoil", "code"), LISTINGS)
def test_a_broken_listing_is_a_typed_error_and_never_an_empty_folder(
    daemon: Daemon, origin: ScriptedOrigin, spoil: spoils.Spoil, code: str
) -> None:
    source = put(origin, TREE)
    origin.misdeed(spoil, on="LIST")
    refused(daemon.acquire(source, timeout_s=20), code)
    assert_nothing_visible(daemon)
    assert len(origin.asked_for("m/", "LIST")) <= 2 * FETCH["attempts"]  # type: ignore[operator]
    origin.heal()
    assert tree_of(daemon, granted(daemon.acquire(source))) == TREE


def test_a_listing_of_many_pages_is_read_to_its_end(daemon: Daemon, origin: ScriptedOrigin) -> None:
    origin.page_keys = 2
    assert tree_of(daemon, granted(daemon.acquire(put(origin, TREE)))) == TREE


def test_a_file_that_is_listed_and_gone_is_named(daemon: Daemon, origin: ScriptedOrigin) -> None:
    source = put(origin, TREE)
    origin.misdeed(spoils.refuse(404, "NoSuchKey"), prefix="m/vae/diffusion")
    for _ in range(6):  # the failure cancels the other files' downloads, at another moment each time
        problem = refused(daemon.acquire(source), "integrity_error")
        assert "vae/diffusion_pytorch_model.safetensors" in problem["detail"]
    assert_nothing_visible(daemon)


# ---- credentials


def test_a_token_that_expires_in_the_middle_of_an_object_is_renewed_from_its_file(
    make_daemon: MakeDaemon, origin: ScriptedOrigin, tmp_path: pathlib.Path
) -> None:
    token = tmp_path / "token"
    token.write_text("the-old-token")
    account = settings(origin.endpoint_url, session_token_file=str(token))
    daemon = make_daemon(origins={"scripted": account}, fetch={**FETCH, "connections": 1})
    source = put(origin, TREE)

    def expire(ask: Ask, reply: Reply) -> None:
        token.write_text("the-new-token")
        spoils.refuse(400, "ExpiredToken")(ask, reply)

    def is_old(ask: Ask) -> bool:
        return ask.headers.get("x-amz-security-token") == "the-old-token" and ask.range not in (None, (0, SEGMENT - 1))

    origin.misdeed(expire, when=is_old)
    assert tree_of(daemon, granted(daemon.acquire(source))) == TREE
    refusals = [ask for ask in origin.asked if is_old(ask)]
    assert len(refusals) == 1
    assert "the-old-token" not in daemon.log_text
    assert "the-new-token" not in daemon.log_text


# ---- an origin that wants quiet


def test_one_refusal_keeps_everybody_quiet_for_as_long_as_was_asked(daemon: Daemon, origin: ScriptedOrigin) -> None:
    put(origin, {"a.safetensors": b"a" * 200}, "one")
    put(origin, {"a.safetensors": b"b" * 200}, "two")
    origin.misdeed(spoils.refuse(429, "SlowDown", Retry_After="1"), prefix="one/a", times=1)
    answers: list[int] = []
    askers = [
        threading.Thread(target=lambda name=name: answers.append(daemon.acquire(f"s3://weights/{name}").status))  # type: ignore[misc]
        for name in ("one", "two")
    ]
    askers[0].start()
    while not origin.asked_for("one/a", "GET"):
        pass
    askers[1].start()
    for asker in askers:
        asker.join()
    assert answers == [200, 200]
    refused_at = origin.asked_for("one/a", "GET")[0].at
    later = [ask.at - refused_at for ask in origin.asked if ask.at > refused_at + 0.2]
    assert later
    assert min(later) >= 0.95


# ---- pushing


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    return objects.write(tmp_path / "model", TREE)


def pushing(origin: ScriptedOrigin) -> Settings:
    return Settings.model_validate(
        {"origins": {"scripted": settings(origin.endpoint_url)}, "fetch": {**FETCH, "idle_timeout_s": 20}}
    )


def test_a_push_whose_last_answer_is_lost_looks_before_it_uploads_again(origin: ScriptedOrigin, tmp_path: pathlib.Path) -> None:
    big = {"big.safetensors": objects.noise("big", 70 << 20)}
    model = objects.write(tmp_path / "big", big)
    digest = objects.Digest.of(big["big.safetensors"]).hex

    def with_its_digest(ask: Ask, reply: Reply) -> None:
        reply.headers["x-amz-meta-sha256"] = digest

    origin.misdeed(with_its_digest, on="HEAD", prefix=f"m/blobs/sha256/{digest}")
    origin.misdeed(spoils.refuse(500, "InternalError"), on="POST", when=lambda ask: "uploadId" in ask.query, times=1)
    report = publish(str(model), "s3://weights/m", pushing(origin))
    assert report.uploaded_files == 1
    assert len([ask for ask in origin.asked if ask.method == "POST" and "uploads" in ask.query]) == 1
    assert origin.objects[f"m/blobs/sha256/{digest}"] == big["big.safetensors"]
    assert origin.uploads_left_open == 0


def test_a_push_that_fails_half_way_leaves_no_parts_and_publishes_nothing(
    origin: ScriptedOrigin, tmp_path: pathlib.Path
) -> None:
    model = objects.write(tmp_path / "big", {"big.safetensors": objects.noise("big", 70 << 20)})
    origin.misdeed(spoils.refuse(403, "AccessDenied"), on="PUT", when=lambda ask: ask.query.get("partNumber") == "2")
    with pytest.raises(HotshelfError):
        publish(str(model), "s3://weights/m", pushing(origin))
    assert origin.uploads_left_open == 0
    assert origin.objects == {}


def test_a_push_sends_no_checksum_headers_and_names_the_setting_when_a_service_refuses_some(
    origin: ScriptedOrigin, folder: pathlib.Path
) -> None:
    def knows_none(ask: Ask, reply: Reply) -> None:
        if any(name.startswith(("x-amz-checksum", "x-amz-sdk-checksum", "x-amz-trailer")) for name in ask.headers):
            spoils.refuse(400, body=error("InvalidArgument", "Unsupported header 'x-amz-checksum-crc32'"))(ask, reply)

    origin.misdeed(knows_none, on="PUT")
    publish(str(folder), "s3://weights/m", pushing(origin))
    origin.heal()
    origin.objects.clear()
    origin.misdeed(spoils.refuse(400, body=error("InvalidArgument", "Unsupported header 'x-amz-checksum-crc32'")), on="PUT")
    with pytest.raises(IntegrityError) as refusal:
        publish(str(folder), "s3://weights/m", pushing(origin))
    assert "when_required" in refusal.value.hint
    assert SECRET not in json.dumps(refusal.value.to_problem())


def test_two_who_push_the_same_at_once_both_succeed(daemon: Daemon, origin: ScriptedOrigin, folder: pathlib.Path) -> None:
    """Keys are named by content: whoever comes second writes the same bytes, or finds them there."""
    revisions: list[str] = []
    pushers = [
        threading.Thread(target=lambda: revisions.append(publish(str(folder), "s3://weights/m", pushing(origin)).revision))
        for _ in range(2)
    ]
    for pusher in pushers:
        pusher.start()
    for pusher in pushers:
        pusher.join()
    assert revisions == [objects.manifest_of(TREE).revision] * 2
    assert tree_of(daemon, granted(daemon.acquire("s3://weights/m"))) == TREE
