"""Web servers over HTTPS: what they may say instead of the file, where they may send us, and what a daemon makes of it."""

from __future__ import annotations

import pathlib
import ssl
from collections.abc import Iterator

import pytest

from hotshelf_daemon.config import Settings
from hotshelf_daemon.config.settings import OriginSettings
from hotshelf_daemon.origin import Changed, https
from hotshelf_daemon.origin.https import HttpsOrigin
from hotshelf_daemon.origin.port import Misanswered
from hotshelf_daemon.origin.web import MOST_REDIRECTS
from hotshelf_daemon.provenance import Keyring
from hotshelf_shared.errors import AccessDenied, IntegrityError, NotFound, OriginUnavailable
from hotshelf_shared.source import Source
from tests import objects
from tests.daemon.conftest import MakeDaemon
from tests.daemon.looking import granted, tree_of
from tests.faults.scripted_origin import Ask, Reply, ScriptedOrigin, Spoil
from tests.servers.certificates import certify
from tests.servers.ports import free_ports

DATE, LATER = "Sat, 21 Nov 2026 10:00:00 GMT", "Sat, 21 Nov 2026 10:00:01 GMT"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return certify(tmp_path_factory.mktemp("tls") / "pem")


@pytest.fixture
def server(certificate: pathlib.Path) -> Iterator[ScriptedOrigin]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with ScriptedOrigin(tls=context) as running:
        running.objects["m/w.safetensors"] = b"weights"
        yield running


def host_of(server: ScriptedOrigin) -> str:
    return server.endpoint_url.removeprefix("https://")


def trusting(server: ScriptedOrigin, certificate: pathlib.Path) -> dict[str, OriginSettings]:
    return {"web": OriginSettings(endpoint_url=server.endpoint_url, ca_bundle=str(certificate))}


@pytest.fixture
def origin(server: ScriptedOrigin, certificate: pathlib.Path) -> HttpsOrigin:
    return https.origin_of(host_of(server), Settings(origins=trusting(server, certificate)))


KEY = "bucket/m/w.safetensors"


def whole(origin: HttpsOrigin, key: str = KEY) -> bytes:
    found = origin.head(key)
    assert found is not None
    buffer = bytearray(found.size)
    with origin.open(found, 0, found.size) as body:
        assert body.readinto(memoryview(buffer)) == found.size
    return bytes(buffer)


def saying(status: int, **headers: str | None) -> Spoil:
    def spoil(_ask: Ask, reply: Reply) -> None:
        reply.status = status
        reply.headers.update({name.replace("_", "-"): value for name, value in headers.items()})

    return spoil


# ---- which hosts


def test_only_hosts_that_are_configured_are_asked(server: ScriptedOrigin, certificate: pathlib.Path) -> None:
    for settings in (
        Settings(),
        Settings(hosts=["other"]),
        Settings(origins={"http": OriginSettings(endpoint_url="http://a")}),
    ):
        with pytest.raises(AccessDenied) as refusal:
            https.origin_of(host_of(server), settings)
        assert host_of(server) in refusal.value.hint
    assert not server.asked


def test_a_host_whose_origin_requires_signatures_is_not_asked_past_them(
    server: ScriptedOrigin, certificate: pathlib.Path
) -> None:
    signed = trusting(server, certificate)["web"].model_copy(update={"verify": "required"})
    plain = trusting(server, certificate)["web"]
    for origins in ({"web": signed}, {"a": plain, "b": signed}, {"a": signed, "b": plain}):
        settings = Settings(origins=origins, hosts=[host_of(server)])
        with pytest.raises(AccessDenied) as refusal:
            https.origin_of(host_of(server), settings)
        assert "s3://" in refusal.value.hint
        held = Source.parse(f"{server.endpoint_url}/bucket/m")
        assert not Keyring(settings, {}).accepts(held, None)  # what was held before is not served either


def test_a_port_that_goes_without_saying_is_the_same_host() -> None:
    signed = OriginSettings(endpoint_url="https://minio:443", verify="required", keys=["/k.pem"])
    with pytest.raises(AccessDenied):
        https.origin_of("MinIO", Settings(origins={"web": signed}, hosts=["minio"]))
    assert https.origin_of("CDN.example.com", Settings(hosts=["cdn.example.com:443"])).name


def test_a_certificate_that_nobody_vouches_for_is_refused_for_good(server: ScriptedOrigin) -> None:
    origin = https.origin_of(host_of(server), Settings(hosts=[host_of(server)]))
    with pytest.raises(OriginUnavailable) as refusal:
        origin.head(KEY)
    assert not refusal.value.retryable
    assert "certificate" in refusal.value.message


# ---- redirects


def test_a_redirect_is_followed_to_a_host_that_is_configured_too(
    server: ScriptedOrigin, origin: HttpsOrigin, certificate: pathlib.Path
) -> None:
    server.objects["elsewhere"] = b"weights"
    server.misdeed(saying(302, Location=f"{server.endpoint_url}/bucket/elsewhere"), on="HEAD", prefix="m/")
    server.misdeed(saying(307, Location="/bucket/elsewhere"), on="GET", prefix="m/")
    assert whole(origin) == b"weights"


@pytest.mark.parametrize(
    "location", ["https://elsewhere.example/x", "http://127.0.0.1/x", "https://169.254.169.254/latest", "https://a@127.0.0.1/x"]
)
def test_a_redirect_elsewhere_is_refused_and_named(server: ScriptedOrigin, origin: HttpsOrigin, location: str) -> None:
    server.misdeed(saying(302, Location=location), on="HEAD")
    with pytest.raises(AccessDenied) as refusal:
        origin.head(KEY)
    assert "none of the configured hosts" in refusal.value.message
    assert len(server.asked) == 1


def test_a_signature_in_a_redirect_is_never_told(server: ScriptedOrigin, certificate: pathlib.Path) -> None:
    [port] = free_ports(1)
    settings = Settings(origins=trusting(server, certificate), hosts=[f"127.0.0.1:{port}"])
    server.misdeed(saying(302, Location=f"https://127.0.0.1:{port}/x?X-Amz-Signature=CANARY&sig=CANARY"), on="HEAD")
    with pytest.raises(OriginUnavailable) as failure:
        https.origin_of(host_of(server), settings).head(KEY)
    assert "CANARY" not in str(failure.value)


def test_one_host_s_certificates_do_not_vouch_for_another(
    server: ScriptedOrigin, certificate: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    other = certify(tmp_path / "other.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(other)
    with ScriptedOrigin(tls=context) as elsewhere:
        elsewhere.objects["w"] = b"elsewhere"
        own = OriginSettings(endpoint_url=elsewhere.endpoint_url, ca_bundle=str(other))
        settings = Settings(origins={**trusting(server, certificate), "other": own})
        for kind in ("HEAD", "GET"):
            server.misdeed(saying(302, Location=f"{elsewhere.endpoint_url}/b/w"), on=kind)
        assert whole(https.origin_of(host_of(server), settings)) == b"elsewhere"


def test_a_redirect_in_circles_ends(server: ScriptedOrigin, origin: HttpsOrigin) -> None:
    server.misdeed(saying(302, Location=f"/{KEY}"), on="HEAD")
    with pytest.raises(OriginUnavailable):
        origin.head(KEY)
    assert len(server.asked) == MOST_REDIRECTS


def test_a_redirect_to_the_same_with_a_slash_is_a_folder(server: ScriptedOrigin, origin: HttpsOrigin) -> None:
    server.misdeed(saying(301, Location="/bucket/m/"), on="HEAD")
    assert origin.head("bucket/m") is None


# ---- answers


def test_a_page_for_people_is_no_file(server: ScriptedOrigin, origin: HttpsOrigin) -> None:
    for kind in ("HEAD", "GET"):
        server.misdeed(saying(200, Content_Type="text/html; charset=utf-8"), on=kind)
    assert origin.head(KEY) is None
    assert origin.read(KEY, 100) is None


@pytest.mark.parametrize("tag", [None, 'W/"weak"'], ids=["none", "weak"])
def test_without_a_strong_etag_the_date_tells_versions_apart(
    server: ScriptedOrigin, origin: HttpsOrigin, tag: str | None
) -> None:
    for kind in ("HEAD", "GET"):
        server.misdeed(saying(200, ETag=tag, Last_Modified=DATE), on=kind)
    found = origin.head(KEY)
    assert found is not None
    assert whole(origin) == b"weights"
    assert server.asked[-1].headers["if-unmodified-since"] == DATE
    server.heal()
    server.misdeed(saying(200, ETag=tag, Last_Modified=LATER))
    with pytest.raises(Changed), origin.open(found, 0, found.size):
        pass


def test_what_has_neither_is_refused_with_a_way_out(server: ScriptedOrigin, origin: HttpsOrigin) -> None:
    server.misdeed(saying(200, ETag=None, Last_Modified=None), on="HEAD")
    with pytest.raises(IntegrityError) as refusal:
        origin.head(KEY)
    assert "hotshelf push" in refusal.value.hint


@pytest.mark.parametrize("spoil", [saying(403), saying(405), saying(501), saying(200, Content_Length="0")])
def test_a_server_that_does_not_know_head_is_asked_for_a_byte(
    server: ScriptedOrigin, origin: HttpsOrigin, spoil: Spoil
) -> None:
    server.misdeed(spoil, on="HEAD")
    assert whole(origin) == b"weights"


def test_an_empty_file_is_one_all_the_same(server: ScriptedOrigin, origin: HttpsOrigin) -> None:
    server.objects["m/empty"] = b""
    server.misdeed(saying(416), prefix="m/empty", when=lambda ask: ask.range is not None)
    found = origin.head("bucket/m/empty")
    assert found is not None
    assert found.size == 0


def test_an_answer_without_the_etag_is_not_the_same_version(server: ScriptedOrigin, origin: HttpsOrigin) -> None:
    found = origin.head(KEY)
    assert found is not None
    server.misdeed(saying(200, ETag=None))
    with pytest.raises(Changed), origin.open(found, 0, found.size):
        pass


def test_a_range_that_is_ignored_never_reaches_the_file(server: ScriptedOrigin, origin: HttpsOrigin) -> None:
    def ignore(_ask: Ask, reply: Reply) -> None:
        data = server.objects["m/w.safetensors"]
        reply.status, reply.body = 200, data
        reply.headers |= {"Content-Length": str(len(data)), "Content-Range": None}

    found = origin.head(KEY)
    assert found is not None
    server.misdeed(ignore)
    with pytest.raises(Misanswered), origin.open(found, 1, 3):
        pass


REFUSALS = {
    401: AccessDenied, 403: AccessDenied, 412: Changed, 418: IntegrityError,
    408: OriginUnavailable, 429: OriginUnavailable, 500: OriginUnavailable, 503: OriginUnavailable, 522: OriginUnavailable,
}  # fmt: skip


@pytest.mark.parametrize(("status", "error"), REFUSALS.items())
def test_a_refusal_is_typed_and_names_the_server(
    server: ScriptedOrigin, origin: HttpsOrigin, status: int, error: type[Exception]
) -> None:
    server.misdeed(saying(status), on="GET")
    with pytest.raises(error) as refusal:
        origin.read(KEY, 100)
    assert host_of(server) in str(refusal.value)


def test_what_cannot_be_listed_says_what_can_be_done(origin: HttpsOrigin) -> None:
    with pytest.raises(NotFound) as refusal:
        [*origin.list("bucket/nothing")]
    assert "hotshelf push" in refusal.value.hint


# ---- a daemon


def test_a_pushed_prefix_and_a_single_file_are_leased(
    make_daemon: MakeDaemon, server: ScriptedOrigin, certificate: pathlib.Path
) -> None:
    tree = objects.model("over https")
    server.objects |= {f"pushed/{path}": data for path, data in objects.published(tree).items()}
    web = {"endpoint_url": server.endpoint_url, "ca_bundle": str(certificate)}
    daemon = make_daemon(origins={"web": web}, models={"sdxl": {"source": f"{server.endpoint_url}/bucket/pushed"}})
    assert tree_of(daemon, granted(daemon.acquire("sdxl"))) == tree
    single = granted(daemon.acquire(f"{server.endpoint_url}/{KEY}"))
    assert tree_of(daemon, single) == {"w.safetensors": b"weights"}
    asked = len(server.asked_for("pushed/blobs"))
    assert granted(daemon.acquire(f"{server.endpoint_url}/bucket/pushed"))["revision"]
    assert len(server.asked_for("pushed/blobs")) == asked


def test_a_worker_cannot_make_the_daemon_ask_another_host(make_daemon: MakeDaemon, server: ScriptedOrigin) -> None:
    daemon = make_daemon()
    refusal = daemon.acquire(f"{server.endpoint_url}/{KEY}")
    assert (refusal.status, refusal.body["code"]) == (403, "access_denied")
    assert not server.asked
