"""Rows 30 to 33, and that no name leads the daemon to a link-local address."""

from __future__ import annotations

import contextlib
import json
import pathlib
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from hotshelf_daemon.config import OriginSettings, Settings
from hotshelf_daemon.origin import Retrying
from hotshelf_daemon.origin.guard import LinkLocal, refuse_link_local
from hotshelf_daemon.origin.s3 import S3Origin, client_for
from tests.daemon.looking import granted, refused, tree_of
from tests.daemon_process import Daemon
from tests.faults.scripted_origin import Ask, Reply, ScriptedOrigin, tag
from tests.faults.test_origin_cases import FETCH, settings
from tests.servers.certificates import certify
from tests.servers.child import clean_environment

MakeDaemon = Callable[..., Daemon]
ROOT = pathlib.Path(__file__).parents[2]
TREE = {"a.safetensors": b"a" * 200}


def cold(make_daemon: MakeDaemon, endpoint_url: str, **more: Any) -> Daemon:
    return make_daemon(origins={"there": settings(endpoint_url, **more)}, fetch=FETCH)


# ---- names


def test_a_name_that_nobody_knows_is_unavailable(make_daemon: MakeDaemon) -> None:
    problem = refused(cold(make_daemon, "http://origin.invalid:9000").acquire("s3://weights/m"), "origin_unavailable")
    assert problem["retryable"]
    assert "origin.invalid" in problem["detail"]


def test_a_name_that_resolves_at_the_second_attempt_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    genuine, lookups = socket.getaddrinfo, []

    def flap(*asked: Any, **more: Any) -> Any:
        lookups.append(asked[0])
        if len(lookups) == 1:
            raise socket.gaierror(socket.EAI_AGAIN, "try again")
        return genuine(*asked, **more)

    with ScriptedOrigin() as origin:
        origin.objects["a"] = b"abc"
        client = client_for(OriginSettings.model_validate(settings(origin.endpoint_url)), Settings())
        monkeypatch.setattr(socket, "getaddrinfo", flap)
        seen = Retrying(S3Origin(client, "weights", "there"), 3, sleep=lambda _s: None).head("a")
        client.close()
    assert seen is not None
    assert seen.size == 3
    assert len(lookups) == 2


# ---- certificates


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return certify(tmp_path_factory.mktemp("tls") / "pem")


@pytest.fixture
def secure(certificate: pathlib.Path) -> Iterator[ScriptedOrigin]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with ScriptedOrigin(tls=context) as origin:
        origin.objects |= {f"m/{path}": data for path, data in TREE.items()}
        yield origin


def test_a_certificate_that_nobody_vouches_for_is_refused_at_once(make_daemon: MakeDaemon, secure: ScriptedOrigin) -> None:
    problem = refused(cold(make_daemon, secure.endpoint_url).acquire("s3://weights/m"), "origin_unavailable")
    assert not problem["retryable"]
    assert "certificate" in problem["detail"]
    assert "ca_bundle" in problem["hint"]
    assert secure.asked == []


def test_a_certificate_of_one_s_own_is_accepted_when_it_is_configured(
    make_daemon: MakeDaemon, secure: ScriptedOrigin, certificate: pathlib.Path
) -> None:
    daemon = cold(make_daemon, secure.endpoint_url, ca_bundle=str(certificate))
    assert tree_of(daemon, granted(daemon.acquire("s3://weights/m"))) == TREE


@pytest.mark.parametrize("size", [100, 20_000, 300_000])
@pytest.mark.parametrize("over", ["plain", "tls"])
def test_what_an_origin_sends_behind_its_answer_is_not_the_next_one(
    over: str, size: int, secure: ScriptedOrigin, certificate: pathlib.Path
) -> None:
    """A forged answer to what is going to be asked next, in one piece with the true one before it, and in one record."""
    stop = size + 200
    data = bytes(n % 251 for n in range(stop))

    def forge(_ask: Ask, reply: Reply) -> None:
        head = {"ETag": tag(data), "Content-Range": f"bytes {size}-{stop - 1}/{stop}", "Content-Length": "200"}
        reply.body += Reply(206, dict(head)).head() + bytes(200)

    with contextlib.ExitStack() as stack:
        origin = secure if over == "tls" else stack.enter_context(ScriptedOrigin())
        origin.objects["m/a"] = data
        origin.misdeed(forge, times=1)
        account = {"endpoint_url": origin.endpoint_url, "addressing_style": "path", "unsigned": True, "region": "x"}
        trusted = {"ca_bundle": str(certificate)} if over == "tls" else {}
        reader = S3Origin(client_for(OriginSettings.model_validate(account | trusted), Settings()), "weights", "o")
        found = reader.head("m/a")
        assert found is not None
        for start, end in ((0, size), (size, stop)):
            with reader.open(found, start, end) as body:
                got = bytearray()
                while taken := body.readinto(buffer := memoryview(bytearray(128 << 10))):
                    got += buffer[:taken]
            assert bytes(got) == data[start:end]


# ---- links


def test_an_address_that_swallows_everything_is_unavailable_soon(make_daemon: MakeDaemon) -> None:
    with socket.socket() as hole, socket.socket() as filler:
        hole.bind(("127.0.0.1", 0))
        hole.listen(0)  # one connection fills its queue: to those after it, it is silent
        filler.connect(hole.getsockname())
        host, port = hole.getsockname()
        daemon, began = cold(make_daemon, f"http://{host}:{port}"), time.monotonic()
        assert refused(daemon.acquire("s3://weights/m"), "origin_unavailable")["retryable"]
        assert time.monotonic() - began < 10


def apart(work: str, folder: pathlib.Path) -> Any:
    argv = ["unshare", "--net", sys.executable, "-m", "tests.faults.apart", work, str(folder)]
    done = subprocess.run(argv, cwd=ROOT, env=clean_environment(), check=False, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-4_000:]
    return json.loads(done.stdout)


@pytest.mark.root
@pytest.mark.needs("unshare", "ip", "nft")
def test_a_link_that_loses_every_tenth_packet_is_slow_and_nothing_else(tmp_path: pathlib.Path) -> None:
    told = apart("loss", tmp_path)
    assert (told["status"], told["right"]) == (200, True)
    assert told["dropped"] > 0


# ---- where no origin is


@pytest.mark.root
@pytest.mark.needs("unshare", "ip")
def test_no_name_leads_to_a_link_local_address(tmp_path: pathlib.Path) -> None:
    told = apart("link-local", tmp_path)
    assert [one[:2] for one in told["told"]] == [["access_denied", False]] * 4  # S3 and Google's, by name and by address
    assert all("link-local" in message for _, _, message in told["told"])
    assert told["heard"] in ([], [""])  # connected to, perhaps; told nothing


@pytest.mark.parametrize("address", ["169.254.169.254", "169.254.0.1", "fe80::1", "fe80::1%eth0", "::ffff:169.254.169.254"])
def test_a_link_local_address_is_refused_in_every_notation(address: str) -> None:
    with pytest.raises(LinkLocal):
        refuse_link_local(address)


@pytest.mark.parametrize("address", ["127.0.0.1", "10.0.0.1", "52.1.2.3", "::1", "2001:db8::1"])
def test_other_addresses_are_not(address: str) -> None:
    refuse_link_local(address)
