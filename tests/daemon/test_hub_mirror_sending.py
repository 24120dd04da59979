"""The mirror's files over HTTP: conditions, ranges, and files that are evicted while they are sent."""

from __future__ import annotations

import http.client
import json
import socket
import struct
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests import objects
from tests.daemon import mirroring
from tests.daemon.conftest import MakeDaemon
from tests.daemon.looking import rows
from tests.daemon.mirroring import REPO, TOKEN, TREE, UNET, Start, asked
from tests.daemon_process import Daemon
from tests.servers.hub import Hub
from tests.waiting import wait_until

PATH, DATA = f"/{REPO}/resolve/main/{UNET}", TREE[UNET]
ETAG, SIZE = f'"{objects.Digest.of(DATA).hex}"', len(DATA)


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with Hub() as running:
        running.push(REPO, {**TREE, "empty.txt": b""})
        yield running


@pytest.fixture
def start(make_daemon: MakeDaemon, hub: Hub) -> Start:
    return lambda **settings: make_daemon(**{**mirroring.settings(hub), **settings})


@pytest.fixture(scope="module")
def kept(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with Daemon(tmp_path_factory.mktemp("mirror"), **mirroring.settings(hub)) as daemon:
        yield daemon


def begin(daemon: Daemon, path: str = PATH) -> socket.socket:
    """A connection that has asked and has read nothing: what it is sent stops when the buffers between are full."""
    host, _, port = daemon.settings["page_listen"].rpartition(":")
    wire = socket.socket()
    wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 10)
    wire.settimeout(60)
    wire.connect((host, int(port)))
    wire.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode())
    return wire


@pytest.mark.parametrize(
    ("asked_for", "status", "span"),
    [
        ("bytes=0-0", 206, (0, 1)),
        ("bytes=7-", 206, (7, SIZE)),
        ("bytes=-10", 206, (SIZE - 10, SIZE)),
        (f"bytes=-{SIZE + 5}", 206, (0, SIZE)),
        (f"bytes={SIZE - 1}-{SIZE + 9}", 206, (SIZE - 1, SIZE)),
        ("bytes=5-2", 200, (0, SIZE)),
        ("bytes=0-1,5-6", 200, (0, SIZE)),
        ("bytes=-", 200, (0, SIZE)),
        ("items=0-1", 200, (0, SIZE)),
        ("bytes=" + "9" * 6_000 + "-", 200, (0, SIZE)),
    ],
)  # fmt: skip
def test_one_range_is_sent_and_what_is_none_is_passed_over(
    kept: Daemon, asked_for: str, status: int, span: tuple[int, int]
) -> None:
    answer, headers, body = asked(kept, PATH, Range=asked_for)
    assert (answer, body) == (status, DATA[slice(*span)])
    assert headers.get("content-range") == (f"bytes {span[0]}-{span[1] - 1}/{SIZE}" if status == 206 else None)


@pytest.mark.parametrize("asked_for", [f"bytes={SIZE}-", "bytes=-0", "bytes=" + "9" * 30 + "-"])
def test_a_range_of_which_there_is_nothing_is_said_to_be_one(kept: Daemon, asked_for: str) -> None:
    status, headers, body = asked(kept, PATH, Range=asked_for)
    assert (status, headers["content-range"], body) == (416, f"bytes */{SIZE}", b"")


def test_an_empty_file_is_sent(kept: Daemon) -> None:
    status, headers, body = asked(kept, f"/{REPO}/resolve/main/empty.txt")
    assert (status, headers["content-length"], body) == (200, "0", b"")


@pytest.mark.parametrize(
    ("since", "status"),
    [(ETAG, 206), ('"another"', 200), (f"W/{ETAG}", 200), ("Wed, 21 Oct 2099 07:28:00 GMT", 200)],
)
def test_a_download_is_resumed_only_if_the_content_is_the_same(kept: Daemon, since: str, status: int) -> None:
    answer, _, body = asked(kept, PATH, Range="bytes=100-199", If_Range=since)
    assert (answer, body) == (status, DATA[100:200] if status == 206 else DATA)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(
    ("name", "value", "status"),
    [
        ("If-Match", ETAG, 200),
        ("If-Match", f'"another", {ETAG}', 200),
        ("If-Match", "*", 200),
        ("If-Match", '"another"', 412),
        ("If-Match", f"W/{ETAG}", 412),
        ("If-None-Match", ETAG, 304),
        ("If-None-Match", f"W/{ETAG}", 304),
        ("If-None-Match", "*", 304),
        ("If-None-Match", '"another"', 200),
        ("If-Modified-Since", "Wed, 21 Oct 2099 07:28:00 GMT", 200),
        ("If-Unmodified-Since", "Wed, 21 Oct 2015 07:28:00 GMT", 200),
    ],
)
def test_conditions_are_of_the_content_s_own_name(kept: Daemon, method: str, name: str, value: str, status: int) -> None:
    answer, headers, body = asked(kept, PATH, method=method, **{name: value})
    assert (answer, headers["etag"]) == (status, ETAG)
    assert body == (DATA if (method, status) == ("GET", 200) else b"")


def test_what_somebody_has_already_is_not_fetched(start: Start, hub: Hub) -> None:
    daemon = start()
    assert asked(daemon, PATH, If_None_Match=ETAG)[0] == 304
    assert rows(daemon, "SELECT * FROM v_blobs") == []


def test_what_is_evicted_while_it_is_sent_arrives_as_it_was(start: Start, hub: Hub) -> None:
    large = objects.safetensors("large", 8 << 20)
    hub.push("org/large", {"model.safetensors": large, "config.json": b"{}"})
    daemon = start()
    with begin(daemon, "/org/large/resolve/main/model.safetensors") as wire:
        answer = http.client.HTTPResponse(wire)
        answer.begin()
        for row in rows(daemon, "SELECT revision FROM v_snapshots"):
            assert daemon.call("DELETE", f"/v1/snapshots/{row['revision']}").status < 300
        assert rows(daemon, "SELECT * FROM v_blobs WHERE state = 'ready'") == []
        assert answer.read() == large


def test_whoever_leaves_in_the_middle_of_a_file_is_no_error(start: Start, hub: Hub) -> None:
    hub.push("org/large", {"model.safetensors": objects.safetensors("large", 8 << 20), "config.json": b"{}"})
    daemon = start()
    for _ in range(8):
        with begin(daemon, "/org/large/resolve/main/model.safetensors") as wire:
            assert wire.recv(12, socket.MSG_WAITALL) == b"HTTP/1.1 200"
            wire.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # which resets it at once
    assert asked(daemon, f"/{REPO}/resolve/main/empty.txt")[0] == 200
    assert daemon.terminate() == 0
    assert [line for line in daemon.log_text.splitlines() if json.loads(line)["level"] == "error"] == []


def test_what_nobody_waits_for_any_more_is_not_fetched_to_its_end(start: Start, hub: Hub) -> None:
    daemon, held = start(), threading.Event()
    hub.misdeed(lambda _ask, _reply: held.wait(30) and None, server="cdn")
    try:
        with begin(daemon):
            wait_until(lambda: daemon.call("GET", "/v1/transfers").body["transfers"])
        wait_until(lambda: not daemon.call("GET", "/v1/transfers").body["transfers"])
        assert not held.is_set()
    finally:
        held.set()
        hub.heal()


def test_many_who_ask_for_one_file_share_one_fetch_of_it(start: Start, hub: Hub) -> None:
    daemon, before = start(), len(hub.asked_of("cdn"))
    with ThreadPoolExecutor(40) as many:
        answers = [*many.map(lambda _: asked(daemon, PATH)[2], range(40))]
    assert set(answers) == {DATA}
    segments = -(-SIZE // mirroring.SEGMENT)
    assert len(hub.asked_of("cdn")) - before <= segments + 1


def test_a_stop_waits_for_no_reader(start: Start, hub: Hub) -> None:
    large = objects.safetensors("large", 8 << 20)
    hub.push("org/large", {"model.safetensors": large, "config.json": b"{}"})
    daemon = start()
    with begin(daemon, "/org/large/resolve/main/model.safetensors") as wire:
        assert wire.recv(12, socket.MSG_WAITALL) == b"HTTP/1.1 200"
        assert daemon.terminate(timeout_s=15) == 0


def test_who_finds_no_room_just_now_is_told_to_ask_again(start: Start, hub: Hub) -> None:
    files = {f"{name}.safetensors": objects.safetensors(name, 1 << 20) for name in "ab"}
    hub.push("org/two", {**files, "config.json": b"{}"})
    daemon, held = start(budget=(1 << 20) + (512 << 10)), threading.Event()
    hub.misdeed(lambda _ask, _reply: held.wait(30) and None, server="cdn")
    try:
        with begin(daemon, "/org/two/resolve/main/a.safetensors"):
            wait_until(lambda: daemon.call("GET", "/v1/transfers").body["transfers"])
            status, headers, _ = asked(daemon, "/org/two/resolve/main/b.safetensors")
            assert (status, "are lacking" in headers["x-error-message"]) == (429, True)
    finally:
        held.set()
        hub.heal()
    assert wait_until(lambda: asked(daemon, "/org/two/resolve/main/b.safetensors")[2] == files["b.safetensors"])
