"""One contract for every way to the daemon, run on the twin and on the socket; then what only a socket can do."""

from __future__ import annotations

import json
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hotshelf import transport as port
from hotshelf.transport import MemoryTransport, Reply, Request, Transport, ask
from hotshelf.unix import UnixTransport
from hotshelf_shared.errors import (
    AccessDenied,
    BadConfiguration,
    DaemonUnavailable,
    HotshelfError,
    InsufficientSpace,
    InvalidRequest,
    NotFound,
    Timeout,
)

from .fakes import UnixServer, socket_path

READY = {"event": "ready", "lease": {}}
Serve = Callable[[Callable[[Request], Reply]], Transport]


def soon() -> float:
    return time.monotonic() + 10


@pytest.fixture(params=["memory", "unix"])
def serve(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Serve]:
    servers: list[UnixServer] = []

    def over_memory(answer: Callable[[Request], Reply]) -> Transport:
        return MemoryTransport(answer)

    def over_unix(answer: Callable[[Request], Reply]) -> Transport:
        servers.append(UnixServer(socket_path(tmp_path), answer).start())
        return UnixTransport(str(servers[0].path))

    yield over_memory if request.param == "memory" else over_unix
    for server in servers:
        server.stop()
        shutil.rmtree(server.path.parent, ignore_errors=True)


class TestEveryTransport:
    def test_the_request_arrives_and_the_answer_returns(self, serve: Serve) -> None:
        way = serve(lambda request: Reply({"saw": [request.method, request.path, request.body]}))
        answer = ask(way, "POST", "/v1/verify", {"revision": "é"}, deadline=soon())
        assert answer == {"saw": ["POST", "/v1/verify", {"revision": "é"}]}

    def test_one_channel_carries_many_requests(self, serve: Serve) -> None:
        with serve(lambda request: Reply({"path": request.path})).connect(soon()) as channel:
            assert [channel.ask("GET", f"/{n}", deadline=soon())["path"] for n in range(3)] == ["/0", "/1", "/2"]

    def test_an_empty_answer_is_none(self, serve: Serve) -> None:
        assert ask(serve(lambda _: Reply(None, status=204)), "DELETE", "/v1/leases/a", deadline=soon()) is None

    def test_a_problem_is_raised_as_the_error_it_stands_for(self, serve: Serve) -> None:
        problem = InsufficientSpace("full of sdxl", hint="unpin sdxl", holders=["sdxl"]).to_problem()
        with pytest.raises(InsufficientSpace) as caught:
            ask(serve(lambda _: Reply(problem, status=507)), "POST", "/v1/leases", {}, deadline=soon())
        assert (caught.value.message, caught.value.hint, caught.value.retryable) == ("full of sdxl", "unpin sdxl", True)
        assert caught.value.details == {"holders": ["sdxl"]}

    @pytest.mark.parametrize("body", [None, "sorry", [1], {"detail": "no code"}])
    def test_a_refusal_without_a_problem_names_status_and_request(self, serve: Serve, body: object) -> None:
        with pytest.raises(HotshelfError, match="GET /v1/later was answered 404") as caught:
            ask(serve(lambda _: Reply(body, status=404)), "GET", "/v1/later", deadline=soon())
        assert "versions" in caught.value.hint

    def test_events_arrive_in_order_and_end_with_ready(self, serve: Serve) -> None:
        lines = [{"event": "progress", "n": 1}, b"\n", {"event": "progress", "n": 2}, READY, {"event": "late"}]
        with serve(lambda _: Reply(lines=lines)).connect(soon()) as channel:
            assert list(channel.events("POST", "/v1/leases", {}, deadline=soon())) == [lines[0], lines[2], READY]

    def test_an_error_event_is_raised(self, serve: Serve) -> None:
        lines = [{"event": "progress"}, {"event": "error", "problem": NotFound("no such prefix").to_problem()}]
        with (
            serve(lambda _: Reply(lines=lines)).connect(soon()) as channel,
            pytest.raises(NotFound, match="no such prefix"),
        ):
            list(channel.events("POST", "/v1/leases", {}, deadline=soon()))

    def test_a_refused_stream_is_raised(self, serve: Serve) -> None:
        problem = AccessDenied("not you").to_problem()
        with (
            serve(lambda _: Reply(problem, status=403)).connect(soon()) as channel,
            pytest.raises(AccessDenied, match="not you"),
        ):
            list(channel.events("POST", "/v1/leases", {}, deadline=soon()))

    def test_a_stream_without_an_end_is_a_daemon_that_went_away(self, serve: Serve) -> None:
        with (
            serve(lambda _: Reply(lines=[{"event": "progress"}])).connect(soon()) as channel,
            pytest.raises(DaemonUnavailable, match="broke off"),
        ):
            list(channel.events("POST", "/v1/leases", {}, deadline=soon()))

    @pytest.mark.parametrize("line", [b"{not json}\n", b"[1]\n", b'{"event":"a","event":"b"}\n', b"\xff\xfe\n"])
    def test_a_line_that_is_no_event_is_a_typed_error(self, serve: Serve, line: bytes) -> None:
        with serve(lambda _: Reply(lines=[line])).connect(soon()) as channel, pytest.raises(HotshelfError) as caught:
            list(channel.events("POST", "/v1/leases", {}, deadline=soon()))
        assert not caught.value.retryable

    def test_a_body_that_is_no_json_is_the_callers_mistake(self, serve: Serve) -> None:
        with pytest.raises(InvalidRequest):
            ask(serve(lambda _: Reply({})), "POST", "/v1/leases", {"source": object()}, deadline=soon())

    def test_a_file_is_uploaded_whole(self, serve: Serve, tmp_path: Path) -> None:
        data = bytes(range(256)) * 12_000  # several pieces
        (tmp_path / "file").write_bytes(data)
        seen: list[Request] = []

        def take(request: Request) -> Reply:
            seen.append(request)
            return Reply(None, status=201)

        with serve(take).connect(soon()) as channel, (tmp_path / "file").open("rb") as file:
            assert channel.upload("/v1/blobs/a", file.fileno(), len(data), deadline=soon()) == 201
        assert [(one.method, one.path, one.body, one.data) for one in seen] == [("PUT", "/v1/blobs/a", None, data)]

    def test_an_empty_file_is_uploaded_too(self, serve: Serve, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with serve(lambda _: Reply(None, status=201)).connect(soon()) as channel, (tmp_path / "file").open("rb") as file:
            assert channel.upload("/v1/blobs/a", file.fileno(), 0, deadline=soon()) == 201

    def test_a_refused_upload_is_raised(self, serve: Serve, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"x" * 100)
        way = serve(lambda _: Reply(InsufficientSpace("full").to_problem(), status=507))
        with (
            way.connect(soon()) as channel,
            (tmp_path / "file").open("rb") as file,
            pytest.raises(InsufficientSpace, match="full"),
        ):
            channel.upload("/v1/blobs/a", file.fileno(), 100, deadline=soon())

    def test_a_file_that_became_shorter_is_the_caller_s_mistake(self, serve: Serve, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"x" * 100)
        with (
            serve(lambda _: Reply(None, status=201)).connect(soon()) as channel,
            (tmp_path / "file").open("rb") as file,
            pytest.raises(InvalidRequest, match="100 of 200"),
        ):
            channel.upload("/v1/blobs/a", file.fileno(), 200, deadline=soon())

    def test_headers_are_asked_for_without_a_body(self, serve: Serve) -> None:
        with serve(lambda _: Reply(headers={"X-Hotshelf-Size": "7"})).connect(soon()) as channel:
            got = channel.head("/v1/blobs/a", deadline=soon())
            assert got is not None
            assert got["x-hotshelf-size"] == "7"

    def test_what_is_not_there_has_no_headers_and_what_is_refused_says_why(self, serve: Serve) -> None:
        def refuse(request: Request) -> Reply:
            error: HotshelfError = NotFound() if request.path == "/none" else AccessDenied()
            return Reply(None, status=error.status, headers={"X-Hotshelf-Code": error.code})

        with serve(refuse).connect(soon()) as channel:
            assert channel.head("/none", deadline=soon()) is None
            with pytest.raises(AccessDenied):
                channel.head("/secret", deadline=soon())

    def test_a_refusal_without_a_code_is_no_absence(self, serve: Serve) -> None:
        """Something else answers there: nobody may take that for "not held"."""
        with (
            serve(lambda _: Reply(None, status=404)).connect(soon()) as channel,
            pytest.raises(HotshelfError, match="HEAD /v1/blobs/a was answered 404"),
        ):
            channel.head("/v1/blobs/a", deadline=soon())

    def test_an_aborted_channel_answers_no_more(self, serve: Serve) -> None:
        with serve(lambda _: Reply({})).connect(soon()) as channel:
            channel.abort()
            with pytest.raises(DaemonUnavailable):
                channel.ask("GET", "/v1/status", deadline=soon())

    def test_a_deadline_in_the_past_is_a_timeout(self, serve: Serve) -> None:
        with serve(lambda _: Reply({})).connect(soon()) as channel, pytest.raises(Timeout):
            channel.ask("GET", "/v1/status", deadline=time.monotonic() - 1)


class RawServer:
    """Answers each connection with bytes, as they come from `chunks`, and then hangs up."""

    def __init__(self, path: Path, chunks: Callable[[], Iterator[bytes]]) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._chunks = chunks
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        connection, _ = self._listener.accept()
        with connection:
            connection.recv(65536)
            try:
                for chunk in self._chunks():
                    connection.sendall(chunk)
            except OSError:
                return

    def stop(self) -> None:
        self._listener.close()
        self._thread.join(10)


@pytest.fixture
def raw(tmp_path: Path) -> Iterator[Callable[[Callable[[], Iterator[bytes]]], UnixTransport]]:
    path = socket_path(tmp_path)
    servers: list[RawServer] = []

    def start(chunks: Callable[[], Iterator[bytes]]) -> UnixTransport:
        servers.append(RawServer(path, chunks))
        return UnixTransport(str(path))

    yield start
    for server in servers:
        server.stop()
    shutil.rmtree(path.parent, ignore_errors=True)


Raw = Callable[[Callable[[], Iterator[bytes]]], UnixTransport]


class TestTheSocket:
    def test_a_missing_socket_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(DaemonUnavailable, match="/tmp/nobody-here"):
            UnixTransport("/tmp/nobody-here").connect(soon())

    def test_a_path_that_cannot_be_a_socket_address_is_refused_with_the_limit(self) -> None:
        UnixTransport("/" + "x" * 106)
        with pytest.raises(BadConfiguration, match=r"108 bytes.*107") as caught:
            UnixTransport("/" + "é" * 53 + "x")
        assert "HOTSHELF_SOCKET" in caught.value.hint

    def test_a_socket_without_permission_is_access_denied_and_says_how_to_get_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr("hotshelf.unix._DeadlineSocket.connect", refuse)
        with pytest.raises(AccessDenied, match="Permission denied") as caught:
            UnixTransport("/run/hotshelf/hotshelf.sock").connect(soon())
        assert "supplementary group" in caught.value.hint

    def test_a_cut_answer_is_a_daemon_that_went_away(self, raw: Raw) -> None:
        way = raw(lambda: iter([b'HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"version": 1}']))
        with pytest.raises(DaemonUnavailable, match="broke off"):
            ask(way, "GET", "/v1/status", deadline=soon())

    def test_a_stream_cut_inside_a_line_is_a_daemon_that_went_away(self, raw: Raw) -> None:
        head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        with (
            raw(lambda: iter([head + b'10\r\n{"event":'])).connect(soon()) as channel,
            pytest.raises(DaemonUnavailable),
        ):
            list(channel.events("POST", "/v1/leases", {}, deadline=soon()))

    @pytest.mark.parametrize("noise", [b"", b"SSH-2.0-OpenSSH\r\n\r\n", b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 200])
    def test_a_peer_that_speaks_no_http_is_unavailable(self, raw: Raw, noise: bytes) -> None:
        with pytest.raises(DaemonUnavailable):
            ask(raw(lambda: iter([noise])), "GET", "/v1/status", deadline=soon())

    def test_a_body_that_nobody_wants_is_not_sent(self, raw: Raw, tmp_path: Path) -> None:
        """The daemon holds it already, and says so before a byte of it has gone."""
        (tmp_path / "file").write_bytes(b"x" * (64 << 20))
        way = raw(lambda: iter([b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n"]))
        with way.connect(soon()) as channel, (tmp_path / "file").open("rb") as file:
            assert channel.upload("/v1/blobs/a", file.fileno(), 64 << 20, deadline=soon()) == 204

    def test_an_upload_that_is_refused_half_way_says_why(self, raw: Raw, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"x" * (8 << 20))
        problem = json.dumps(InsufficientSpace("the disk is full").to_problem()).encode()
        go_ahead = b"HTTP/1.1 100 Continue\r\n\r\n"
        answer = b"HTTP/1.1 507 Full\r\nContent-Length: %d\r\n\r\n%b" % (len(problem), problem)
        way = raw(lambda: iter([go_ahead, answer]))
        with (
            way.connect(soon()) as channel,
            (tmp_path / "file").open("rb") as file,
            pytest.raises(InsufficientSpace, match="the disk is full"),
        ):
            channel.upload("/v1/blobs/a", file.fileno(), 8 << 20, deadline=soon())

    def test_an_upload_to_a_daemon_that_dies_is_one_to_a_daemon_that_went_away(self, raw: Raw, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"x" * (8 << 20))
        way = raw(lambda: iter([b"HTTP/1.1 100 Continue\r\n\r\n"]))
        with way.connect(soon()) as channel, (tmp_path / "file").open("rb") as file, pytest.raises(DaemonUnavailable):
            channel.upload("/v1/blobs/a", file.fileno(), 8 << 20, deadline=soon())

    def test_an_answer_without_end_is_not_read_to_its_end(self, raw: Raw, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("hotshelf.unix.MAX_ANSWER_BYTES", 1000)
        monkeypatch.setattr(port, "MAX_ANSWER_BYTES", 1000)

        def forever() -> Iterator[bytes]:
            yield b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
            while True:
                yield b"40\r\n" + b" " * 64 + b"\r\n"

        way = raw(forever)
        with pytest.raises(HotshelfError, match="over 1,000 bytes"):
            ask(way, "GET", "/v1/status", deadline=soon())

    def test_a_line_without_end_is_not_read_to_its_end(self, raw: Raw, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("hotshelf.unix.MAX_ANSWER_BYTES", 1000)

        def forever() -> Iterator[bytes]:
            yield b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
            while True:
                yield b"40\r\n" + b"x" * 64 + b"\r\n"

        with raw(forever).connect(soon()) as channel, pytest.raises(HotshelfError, match="over 1,000 bytes"):
            list(channel.events("POST", "/v1/leases", {}, deadline=soon()))

    def test_a_dripping_answer_does_not_outlive_the_deadline(self, raw: Raw) -> None:
        stop = threading.Event()

        def drip() -> Iterator[bytes]:
            yield b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
            while not stop.wait(0.02):
                yield b"1\r\n \r\n"

        way, began = raw(drip), time.monotonic()
        with pytest.raises(Timeout):
            ask(way, "GET", "/v1/status", deadline=began + 0.3)
        stop.set()
        assert time.monotonic() - began < 5
