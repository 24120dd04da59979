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
from hotshelf_shared.errors import AccessDenied, IntegrityError, NotFound, OriginUnavailable
from tests import objects
from tests.daemon.conftest import MakeDaemon
from tests.daemon.looking import granted, tree_of
from tests.faults.scripted_origin import Ask, Reply, ScriptedOrigin, Spoil
from tests.servers.certificates import certify

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
    with pytest.raises(AccessDenied):
        https.origin_of(host_of(server), Settings(origins={"web": signed}, hosts=[host_of(server)]))


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


def test_a_redirect_in_circles_ends(server: ScriptedOrigin, origin: HttpsOrigin) -> None:
    server.misdeed(saying(302, Location=f"/{KEY}"), on="HEAD")
    with pytest.raises(OriginUnavailable):
        origin.head(KEY)
    assert len(server.asked) == https.MOST_REDIRECTS


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


def test_a_length_that_is_not_told_is_refused(server: ScriptedOrigin, origin: HttpsOrigin) -> None:
    server.misdeed(saying(200, Content_Length=None), on="HEAD")
    with pytest.raises(IntegrityError):
        origin.head(KEY)


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
    429: OriginUnavailable, 500: OriginUnavailable, 503: OriginUnavailable,
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
