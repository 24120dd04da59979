"""Google Cloud Storage: what is asked of it, what it may say instead of the object, and what a daemon makes of it."""

from __future__ import annotations

import contextlib
import json
import pathlib
import ssl
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from awscrt.checksums import crc32c

from hotshelf_daemon import doctor
from hotshelf_daemon.config import OriginSettings, Settings
from hotshelf_daemon.objects import Checksum, OriginObject
from hotshelf_daemon.origin import Changed, Misanswered, gcs
from hotshelf_daemon.origin.gcs import GcsOrigin
from hotshelf_daemon.origin.port import Busy
from hotshelf_daemon.provenance import Keyring
from hotshelf_shared.errors import AccessDenied, HotshelfError, IntegrityError, NotFound, OriginUnavailable, TooLarge
from hotshelf_shared.source import Source
from tests import objects
from tests.daemon.conftest import MakeDaemon
from tests.daemon.looking import blobs_on_disk, granted, refused, tree_of
from tests.daemon.origins.worlds import gcs_origin
from tests.faults.scripted_gcs import ScriptedGcs, refusal
from tests.faults.scripted_origin import Ask, Reply, Spoil
from tests.servers.certificates import certify

KEY, DATA = "m/w.safetensors", b"weights, and more of them"


@pytest.fixture
def server() -> Iterator[ScriptedGcs]:
    with ScriptedGcs() as running:
        running.objects[KEY] = DATA
        yield running


@pytest.fixture
def origin(server: ScriptedGcs) -> GcsOrigin:
    return gcs_origin(server.endpoint_url)


def found(origin: GcsOrigin, key: str = KEY) -> OriginObject:
    seen = origin.head(key)
    assert seen is not None
    return seen


def part(origin: GcsOrigin, obj: OriginObject, start: int = 1, stop: int = 9) -> bytes:
    data, buffer = b"", memoryview(bytearray(1 << 16))
    with origin.open(obj, start, stop) as body:
        while taken := body.readinto(buffer):
            data += buffer[:taken]
    return data


def saying(status: int, body: bytes | None = None, **headers: str | None) -> Spoil:
    def spoil(_ask: Ask, reply: Reply) -> None:
        reply.status = status
        if body is not None:
            reply.body = body
            reply.headers["Content-Length"] = str(len(body))
        reply.headers.update({name.replace("_", "-"): value for name, value in headers.items()})

    return spoil


# ---- what is asked


def test_every_read_names_the_generation_and_nothing_else_is_asked(server: ScriptedGcs, origin: GcsOrigin) -> None:
    (seen,) = origin.list("m")
    assert (seen.version, seen.checksum) == (server.generation(KEY), Checksum.crc32c(crc32c(DATA)))
    assert part(origin, seen) == DATA[1:9]
    assert part(origin, seen, 0, len(DATA)) == DATA
    assert [ask.kind for ask in server.asked] == ["LIST", "GET", "GET"]
    ranged, whole = server.asked_for(KEY, "GET")
    assert ranged.query["generation"] == whole.query["generation"] == seen.version
    assert (ranged.headers["range"], ranged.headers["accept-encoding"]) == ("bytes=1-8", "identity")
    assert "range" not in whole.headers
    assert all("authorization" not in ask.headers for ask in server.asked)


def test_connections_are_kept(server: ScriptedGcs, origin: GcsOrigin) -> None:
    seen = found(origin)
    for _ in range(5):
        part(origin, seen)
        assert origin.read(KEY, 100) == DATA
    assert len(server._connections) == 1


def test_a_listing_is_followed_over_all_its_pages(server: ScriptedGcs, origin: GcsOrigin) -> None:
    server.page_keys = 3
    server.objects |= {f"n/{number:02}": b"x" for number in range(10)}
    assert [obj.key for obj in origin.list("n")] == [f"n/{number:02}" for number in range(10)]
    assert len(server.asked_for("n/", "LIST")) == 4


def test_whoever_pays_is_named_in_every_request(server: ScriptedGcs) -> None:
    origin = gcs_origin(server.endpoint_url, project="the payer's")
    part(origin, found(origin))
    [*origin.list("m")]
    assert {ask.query["userProject"] for ask in server.asked} == {"the payer's"}


# ---- listings that are none


def test_a_listing_in_circles_ends(server: ScriptedGcs, origin: GcsOrigin) -> None:
    server.misdeed(saying(200, b'{"nextPageToken": "again"}'), on="LIST")
    with pytest.raises(IntegrityError, match="circles"):
        [*origin.list("m")]
    assert len(server.asked) == 2


def test_a_listing_of_what_was_not_asked_for_is_refused(server: ScriptedGcs, origin: GcsOrigin) -> None:
    server.objects["other/a"] = b"x"
    server.misdeed(saying(200, json.dumps({"items": [server._resource("other/a")]}).encode()), on="LIST")
    with pytest.raises(IntegrityError, match="not below"):
        [*origin.list("m")]


def test_a_listing_without_an_end_is_too_large(server: ScriptedGcs, origin: GcsOrigin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gcs, "MAX_LISTED", 5)
    server.objects |= {f"m/{number}": b"x" for number in range(6)}
    with pytest.raises(TooLarge):
        [*origin.list("m")]


def test_a_bucket_that_is_not_there_is_said_to_be_not_there(server: ScriptedGcs, origin: GcsOrigin) -> None:
    server.misdeed(saying(404, refusal(404, "notFound", "The specified bucket does not exist.")), on="LIST")
    with pytest.raises(NotFound, match="no bucket gs://weights"):
        [*origin.list("m")]


@pytest.mark.parametrize(
    "body",
    [b"<html>Sign in to the guest network", b"[]", b'"text"', b"{}", b'{"name": "m/w.safetensors", "size": "many"}',
     b'{"name": "m/w.safetensors", "size": "3"}', b'{"name": "m/w.safetensors", "generation": "3"}', b"\xff\xfe"],
)  # fmt: skip
def test_what_is_no_answer_of_cloud_storage_is_said_to_be_none(server: ScriptedGcs, origin: GcsOrigin, body: bytes) -> None:
    server.misdeed(saying(200, body), on="META")
    with pytest.raises(IntegrityError):
        origin.head(KEY)


@pytest.mark.parametrize("text", ["", "AAA", "AAAAAAAA", "not base64!"])
def test_a_checksum_that_cannot_be_read_is_none(server: ScriptedGcs, origin: GcsOrigin, text: str) -> None:
    body = json.dumps({**server._resource(KEY), "crc32c": text}).encode()
    server.misdeed(saying(200, body), on="META")
    assert found(origin).checksum is None


# ---- bytes that are not those


def ignoring_the_range(ask: Ask, reply: Reply) -> None:
    reply.status, reply.body = 200, DATA
    reply.headers |= {"Content-Length": str(len(DATA)), "Content-Range": None}


BAD: dict[str, tuple[Spoil, type[HotshelfError]]] = {
    "200 to a range": (ignoring_the_range, Misanswered),
    "another range": (saying(206, Content_Range=f"bytes 2-9/{len(DATA)}"), Misanswered),
    "no range": (saying(206, Content_Range=None), Misanswered),
    "nonsense for a range": (saying(206, Content_Range="pages 1-8"), Misanswered),
    "a range of another size": (saying(206, Content_Range="bytes 1-8/1000"), Changed),
    "too little": (saying(206, b"w", Content_Length="1"), Misanswered),
    "another generation": (saying(206, x_goog_generation="7"), Changed),
    "stored compressed": (saying(206, x_goog_stored_content_encoding="gzip"), IntegrityError),
    "compressed": (saying(206, Content_Encoding="gzip"), IntegrityError),
    "a generation that is gone": (saying(404, refusal(404, "notFound")), Changed),
    "another precondition": (saying(412, refusal(412, "conditionNotMet")), Changed),
    "beyond the end": (saying(416, refusal(416)), Changed),
    "not signed in": (saying(401, refusal(401, "authError")), AccessDenied),
    "forbidden": (saying(403, refusal(403, "forbidden")), AccessDenied),
    "elsewhere": (saying(302, Location="https://elsewhere.example/"), AccessDenied),
    "another page": (saying(307, Location="/storage/v1/b/weights/o/x?alt=media"), AccessDenied),
    "somebody must pay": (saying(400, refusal(400, "required", "it is requester pays but no user project")), AccessDenied),
    "too many": (saying(429, refusal(429, "rateLimitExceeded"), Retry_After="7"), Busy),
    "too many, as 403": (saying(403, refusal(403, "userRateLimitExceeded"), Retry_After="7"), Busy),
    "slow down": (saying(503, b"<html>no JSON", Retry_After="7"), Busy),
    "an error of theirs": (saying(500, refusal(500, "backendError")), OriginUnavailable),
    "a gateway's": (saying(502, b""), OriginUnavailable),
    "too late": (saying(408, refusal(408)), OriginUnavailable),
    "a proxy's": (saying(407), OriginUnavailable),
    "what it never says": (saying(418, b"\xff"), IntegrityError),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_it_says_instead_is_typed_and_never_taken_for_bytes(server: ScriptedGcs, origin: GcsOrigin, name: str) -> None:
    spoil, error = BAD[name]
    seen, asked = found(origin), len(server.asked)
    server.misdeed(spoil)
    with pytest.raises(error) as failure:
        part(origin, seen)
    assert type(failure.value) is error
    assert KEY in failure.value.message
    assert failure.value.hint
    assert failure.value.retry_after_s == (7 if error is Busy else None)
    assert failure.value.retryable == (error in (Busy, OriginUnavailable) and name != "a proxy's")
    assert len(server.asked) == asked + 1  # a redirect is not followed, and nothing tried again behind our back
    server.heal()
    assert part(origin, seen) == DATA[1:9]


def test_a_denial_says_whom_and_what_to_grant(server: ScriptedGcs, origin: GcsOrigin) -> None:
    server.misdeed(saying(403, refusal(403, "forbidden")), on="META")
    with pytest.raises(AccessDenied, match=r"nobody \(unsigned\) may not read gs://weights/m") as denied:
        origin.head(KEY)
    assert "Storage Object Viewer" in denied.value.hint


@pytest.mark.parametrize(
    "raw", [b"HTTP/1.1 999 What\r\n\r\n", b"\x16\x03\x01\x02\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n"]
)
def test_an_answer_that_is_no_http_is_an_error_of_the_origin(server: ScriptedGcs, origin: GcsOrigin, raw: bytes) -> None:
    def spoil(_ask: Ask, reply: Reply) -> None:
        reply.raw, reply.ending = raw, "fin"

    seen = found(origin)
    server.misdeed(spoil)
    with pytest.raises((OriginUnavailable, IntegrityError)):
        part(origin, seen)


@pytest.mark.parametrize("ending", ["fin", "rst"])
def test_a_body_that_breaks_off_gives_what_came_and_no_more(server: ScriptedGcs, origin: GcsOrigin, ending: str) -> None:
    def spoil(_ask: Ask, reply: Reply) -> None:
        reply.cut, reply.ending = 3, ending

    seen = found(origin)
    server.misdeed(spoil)
    came, buffer = b"", memoryview(bytearray(100))
    with contextlib.suppress(OriginUnavailable), origin.open(seen, 1, 9) as body:
        while taken := body.readinto(buffer):
            came += buffer[:taken]
    assert came in (DATA[1:4], b"")  # a reset takes what nobody has read
    with pytest.raises(OriginUnavailable) as failure:
        origin.read(KEY, 100)
    assert failure.value.retryable


def test_an_object_that_is_stored_compressed_is_refused_whole_too(server: ScriptedGcs, origin: GcsOrigin) -> None:
    """It comes inflated and without a length, since nobody asked for it as it is stored."""
    server.misdeed(saying(200, x_goog_stored_content_encoding="gzip", Content_Length=None))
    for ask in (lambda: origin.read(KEY, 100), lambda: part(origin, found(origin), 0, len(DATA))):
        with pytest.raises(IntegrityError, match="gzip") as failure:
            ask()
        assert "Content-Encoding" in failure.value.hint


def test_a_stand_in_that_does_not_tell_the_generation_is_read_all_the_same(server: ScriptedGcs, origin: GcsOrigin) -> None:
    server.misdeed(saying(206, x_goog_generation=None))
    assert part(origin, found(origin)) == DATA[1:9]


# ---- where it is


def test_a_certificate_counts_when_the_settings_vouch_for_it(tmp_path: pathlib.Path) -> None:
    certificate = certify(tmp_path / "pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with ScriptedGcs(tls=context) as server:
        server.objects[KEY] = DATA
        origin = gcs_origin(server.endpoint_url, ca_bundle=str(certificate))
        assert part(origin, found(origin), 0, len(DATA)) == DATA
        with pytest.raises(OriginUnavailable, match="certificate") as failure:
            gcs_origin(server.endpoint_url).head(KEY)
        assert not failure.value.retryable
        assert "gcs.ca_bundle" in failure.value.hint


@pytest.mark.parametrize(
    ("here", "endpoint", "refuses"),
    [(None, "https://storage.googleapis.com", True), (None, "https://weights.storage.googleapis.com", True),
     (None, "https://storage.europe-west4.rep.googleapis.com", True), ("http://gcs:4443", "http://gcs:9000", True),
     (None, "https://minio:9000", False), (None, None, False), ("http://gcs:4443", "https://storage.googleapis.com", False),
     (None, "https://notgoogleapis.com", False)],
)  # fmt: skip
def test_no_way_leads_past_signatures_that_an_origin_there_requires(
    here: str | None, endpoint: str | None, refuses: bool
) -> None:
    signed = OriginSettings(endpoint_url=endpoint, verify="required", keys=["/k.pem"])
    settings = Settings.model_validate({"gcs": {"endpoint_url": here}, "origins": {"interop": signed}})
    held = Source.parse("gs://weights/m")
    assert Keyring(settings, {}).accepts(held, None) != refuses
    if refuses:
        with pytest.raises(AccessDenied, match="signatures"):
            gcs.origin_of("weights", settings)
    else:
        assert gcs.origin_of("weights", settings).name


def test_the_same_bucket_by_its_two_tongues_is_two_origins() -> None:
    ours = gcs.origin_of("weights", Settings())
    assert ours.name == "https://storage.googleapis.com/storage/v1/b/weights"
    assert gcs_origin("http://gcs:4443").name != ours.name


# ---- a daemon


@pytest.fixture
def make(make_daemon: MakeDaemon, server: ScriptedGcs) -> Callable[..., Any]:
    def daemon(**more: Any) -> Any:
        fetch = {"segment_bytes": 256 << 10, "connections": 4, "attempts": 3}
        return make_daemon(gcs={"endpoint_url": server.endpoint_url, "unsigned": True}, fetch=fetch, **more)

    return daemon


def test_a_folder_an_object_and_what_was_pushed_are_leased(make: Callable[..., Any], server: ScriptedGcs) -> None:
    tree = objects.model("plain", unet=2 << 20)
    server.objects |= {f"plain/{path}": data for path, data in tree.items()}
    server.objects |= {f"pushed/{path}": data for path, data in objects.published(tree).items()}
    daemon = make(models={"sdxl": {"source": "gs://weights/pushed"}})
    assert tree_of(daemon, granted(daemon.acquire("gs://weights/plain"))) == tree
    assert tree_of(daemon, granted(daemon.acquire(f"gs://weights/{KEY}"))) == {"w.safetensors": DATA}
    server.asked.clear()
    assert tree_of(daemon, granted(daemon.acquire("sdxl"))) == tree
    assert not server.asked_for("pushed/blobs")  # by their digests they are here already


def big(server: ScriptedGcs) -> bytes:
    data = objects.noise("big", 2 << 20)
    server.objects["big/w.safetensors"] = data
    return data


def flipping(server: ScriptedGcs) -> Spoil:
    def spoil(_ask: Ask, reply: Reply) -> None:
        reply.body = bytes([reply.body[0] ^ 1]) + reply.body[1:]

    return spoil


@pytest.mark.parametrize("size", [2 << 20, 1_000], ids=["in ranges", "in one go"])
def test_bytes_that_were_spoilt_on_the_way_are_fetched_again_once(
    make: Callable[..., Any], server: ScriptedGcs, size: int
) -> None:
    server.objects["big/w.safetensors"] = data = objects.noise("big", size)
    server.misdeed(flipping(server), prefix="big/w", times=1)
    daemon = make()
    assert tree_of(daemon, granted(daemon.acquire("gs://weights/big"))) == {"w.safetensors": data}
    asked = [ask.range or (0, size - 1) for ask in server.asked_for("big/w", "GET")]
    assert sum(last + 1 - start for start, last in asked) == 2 * size


def test_bytes_that_are_never_what_is_kept_of_them_are_never_served(make: Callable[..., Any], server: ScriptedGcs) -> None:
    big(server)
    server.kept["big/w.safetensors"] = b"others"
    daemon = make()
    problem = refused(daemon.acquire("gs://weights/big"), "integrity_error")
    assert "CRC32C" in problem["detail"]
    assert not blobs_on_disk(daemon)


def test_what_breaks_off_or_is_asked_to_wait_is_taken_up_where_it_stands(make: Callable[..., Any], server: ScriptedGcs) -> None:
    data = big(server)

    def cut(_ask: Ask, reply: Reply) -> None:
        reply.cut, reply.ending = 70_000, "rst"

    server.misdeed(cut, prefix="big/w", times=2)
    server.misdeed(saying(503, b"", Retry_After="0"), prefix="big/w", times=1)
    daemon = make()
    assert tree_of(daemon, granted(daemon.acquire("gs://weights/big"))) == {"w.safetensors": data}


def test_an_object_that_changes_under_the_download_is_never_mixed(make: Callable[..., Any], server: ScriptedGcs) -> None:
    big(server)

    def overwrite(_ask: Ask, _reply: Reply) -> None:
        server.objects["big/w.safetensors"] = objects.noise("other", 2 << 20)

    server.misdeed(overwrite, prefix="big/w", times=1)
    daemon = make()
    reply = daemon.acquire("gs://weights/big")
    if reply.status == 200:  # it was resolved anew
        assert tree_of(daemon, reply.body) == {"w.safetensors": objects.noise("other", 2 << 20)}
    else:
        assert "changed" in refused(reply, "integrity_error")["detail"]
    assert tree_of(daemon, granted(daemon.acquire("gs://weights/big"))) == {"w.safetensors": objects.noise("other", 2 << 20)}


def test_keys_that_step_out_of_their_folder_are_refused(make: Callable[..., Any], server: ScriptedGcs) -> None:
    server.objects["evil/../../etc/passwd"] = b"x"
    daemon = make()
    refused(daemon.acquire("gs://weights/evil"), "unsafe_content")
    refused(daemon.acquire("gs://weights/../secret"), "invalid_request")


def test_what_is_held_is_served_when_cloud_storage_is_away(make: Callable[..., Any], server: ScriptedGcs) -> None:
    daemon = make(revalidate_s=0.01)
    first = granted(daemon.acquire("gs://weights/m"))
    for kind in ("LIST", "META", "GET"):
        server.misdeed(saying(503, b""), on=kind)
    assert granted(daemon.acquire("gs://weights/m"))["revision"] == first["revision"]


def test_the_doctor_asks_for_what_a_name_stands_for(server: ScriptedGcs, tmp_path: pathlib.Path) -> None:
    gcs_settings = {"endpoint_url": server.endpoint_url, "unsigned": True}
    models = {"folder": {"source": "gs://weights/m"}, "single": {"source": f"gs://weights/{KEY}"}}
    settings = Settings.model_validate({"store": str(tmp_path), "gcs": gcs_settings, "models": models})
    assert [*doctor._origins(settings, None)] == []
    server.misdeed(saying(403, refusal(403, "forbidden")), on="META")
    findings = [*doctor._origins(settings, None)]
    assert [(one.level, one.check) for one in findings] == [("error", "origin gcs")] * 2
    assert all("Storage Object Viewer" in one.fix for one in findings)
