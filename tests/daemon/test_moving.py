"""Bytes from a socket into a file past our own memory: the same bytes, and the same words when something goes wrong."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import threading
from collections.abc import Iterator

import pytest

from hotshelf_daemon.config import Settings
from hotshelf_daemon.config.settings import OriginSettings
from hotshelf_daemon.ingest.moving import PIPE_BYTES, Copying, Mover, Splicing, mover
from hotshelf_daemon.metrics import Metrics
from hotshelf_daemon.objects import OriginObject
from hotshelf_daemon.origin import Body, MemoryOrigin, SplicedBody
from hotshelf_daemon.origin.counting import Counting
from hotshelf_daemon.origin.s3 import S3Origin, client_for
from hotshelf_shared.errors import OriginUnavailable
from tests import objects
from tests.faults.scripted_origin import Ask, Reply, ScriptedOrigin

F_ADD_SEALS, F_SEAL_GROW = 1033, 4
DATA = objects.noise("moving", 3 * PIPE_BYTES + 4_321)
START, STOP = 7, len(DATA) - 9


@pytest.fixture
def origin() -> Iterator[ScriptedOrigin]:
    with ScriptedOrigin() as scripted:
        scripted.objects["k"] = DATA
        yield scripted


def read_by(origin: ScriptedOrigin, idle_timeout_s: float = 5) -> tuple[S3Origin, OriginObject]:
    settings = Settings.model_validate({"fetch": {"idle_timeout_s": idle_timeout_s}})
    at = OriginSettings.model_validate({"endpoint_url": origin.endpoint_url, "unsigned": True})
    bucket = S3Origin(client_for(at, settings), "bucket", "scripted")
    found = bucket.head("k")
    assert found is not None
    return bucket, found


def moved(way: Mover, fd: int, count: int, *, most: int = 1 << 30) -> list[bytes]:
    """What is shown of each step, after all of them."""
    at, shown = 0, []
    while at < count and (taken := way.take(min(most, count - at))):
        way.put(fd, at)
        shown.append(b"".join(bytes(piece) for piece in way.pieces(fd, at)))
        assert len(shown[-1]) == taken
        at += taken
    return shown


@pytest.fixture
def fd() -> Iterator[int]:
    made = os.memfd_create("moved", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    yield made
    os.close(made)


@pytest.mark.parametrize("most", [1 << 30, 100_001, 4_096])
def test_a_range_comes_past_our_memory_and_is_shown_as_it_is_in_the_file(origin: ScriptedOrigin, fd: int, most: int) -> None:
    bucket, found = read_by(origin)
    with bucket.open(found, START, STOP) as body, mover(body, STOP - START) as way:
        assert isinstance(way, Splicing)
        shown = moved(way, fd, STOP - START, most=most)
    assert os.pread(fd, len(DATA), 0) == b"".join(shown) == DATA[START:STOP]


def test_the_connection_is_used_again(origin: ScriptedOrigin, fd: int) -> None:
    bucket, found = read_by(origin)
    for _ in range(3):
        with bucket.open(found, START, STOP) as body, mover(body, STOP - START) as way:
            moved(way, fd, STOP - START)
    assert len(origin._connections) == 1


def test_bytes_are_counted_that_nobody_has_seen(origin: ScriptedOrigin, fd: int) -> None:
    bucket, found = read_by(origin)
    metrics = Metrics("test")
    with Counting(bucket, metrics).open(found, START, STOP) as body, mover(body, STOP - START) as way:
        assert isinstance(way, Splicing)
        moved(way, fd, STOP - START)
    line = next(one for one in metrics.render().decode().splitlines() if one.startswith("hotshelf_origin_bytes_total{"))
    assert float(line.split()[-1]) == STOP - START


@pytest.mark.parametrize("ending", ["fin", "rst"])
def test_what_came_before_the_end_of_a_connection_is_kept_and_then_it_is_unavailable(
    origin: ScriptedOrigin, fd: int, ending: str
) -> None:
    def cut(_ask: Ask, reply: Reply) -> None:
        reply.cut, reply.ending = 300_000, ending

    origin.misdeed(cut, on="GET")
    bucket, found = read_by(origin)
    with contextlib.suppress(OriginUnavailable), bucket.open(found, START, STOP) as body, mover(body, STOP - START) as way:
        shown = moved(way, fd, STOP - START)
        assert way.take(1_000) == 0
    assert os.fstat(fd).st_size in range(1, 300_001) or ending == "rst"
    assert os.pread(fd, len(DATA), 0) == DATA[START : START + os.fstat(fd).st_size]
    if ending == "fin":
        assert b"".join(shown) == DATA[START : START + 300_000]


def test_silence_is_unavailable_after_the_idle_time(origin: ScriptedOrigin, fd: int) -> None:
    def cut(_ask: Ask, reply: Reply) -> None:
        reply.cut, reply.ending = 300_000, "stall"

    origin.misdeed(cut, on="GET")
    bucket, found = read_by(origin, idle_timeout_s=0.3)
    with bucket.open(found, START, STOP) as body, mover(body, STOP - START) as way, pytest.raises(OriginUnavailable) as told:
        moved(way, fd, STOP - START)
    assert "timed out" in told.value.message
    assert os.pread(fd, len(DATA), 0) == DATA[START : START + 300_000]


@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOSYS, errno.EINVAL])
def test_a_sandbox_that_knows_no_splice_is_no_origin_that_is_gone(
    origin: ScriptedOrigin, fd: int, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "splice", refused)
    bucket, found = read_by(origin)
    with bucket.open(found, START, STOP) as body, mover(body, STOP - START) as way:
        assert b"".join(moved(way, fd, STOP - START)) == DATA[START:STOP]


def test_what_splice_will_not_show_is_received() -> None:
    """Behind an urgent byte there is something to read, and `splice` says that there is not."""
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as listening:

        def serve() -> None:
            with contextlib.closing(listening.accept()[0]) as there:
                there.recv(65_536)
                there.sendall(f"HTTP/1.1 206 x\r\nContent-Length: {len(DATA)}\r\n"
                              f"Content-Range: bytes 0-{len(DATA) - 1}/{len(DATA) + 1}\r\n\r\n".encode())  # fmt: skip
                there.sendall(DATA[:100_000])
                there.send(b"!", socket.MSG_OOB)
                there.sendall(DATA[100_000:])

        server = threading.Thread(target=serve)
        server.start()
        at = f"http://127.0.0.1:{listening.getsockname()[1]}"
        reads = OriginSettings.model_validate({"endpoint_url": at, "unsigned": True})
        bucket = S3Origin(client_for(reads, Settings()), "bucket", "urgent")
        fd = os.memfd_create("urgent")
        try:
            with bucket.open(OriginObject("k", len(DATA) + 1, ""), 0, len(DATA)) as body, mover(body, len(DATA)) as way:
                assert b"".join(moved(way, fd, len(DATA))) == DATA
        finally:
            os.close(fd)
            server.join(30)


class FromSocket:
    """A body whose bytes are in a socket already."""

    def __init__(self, data: bytes) -> None:
        self._here, self._there = socket.socketpair()
        self._sender = threading.Thread(target=self._send, args=(data,))
        self._sender.start()

    def _send(self, data: bytes) -> None:
        with self._there, contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._there.sendall(data)

    def readinto(self, buffer: memoryview, /) -> int:
        return self._here.recv_into(buffer)

    def splice(self, pipe: int, most: int, /) -> int:
        return os.splice(self._here.fileno(), pipe, most)

    def close(self) -> None:
        self._here.close()
        self._sender.join()


@pytest.fixture
def body() -> Iterator[SplicedBody]:
    with contextlib.closing(FromSocket(DATA)) as made:
        yield made


def test_where_the_file_system_cannot_splice_it_is_copied_out_of_the_pipe(
    body: SplicedBody, tmp_path: os.PathLike[str]
) -> None:
    path = os.path.join(tmp_path, "f")
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)  # no splice to a file that is appended to
    try:
        with mover(body, len(DATA)) as way:
            assert b"".join(moved(way, fd, len(DATA))) == DATA
    finally:
        os.close(fd)


def test_an_error_of_the_file_is_the_file_s(body: SplicedBody, fd: int) -> None:
    os.ftruncate(fd, 100_000)
    fcntl.fcntl(fd, F_ADD_SEALS, F_SEAL_GROW)
    with mover(body, len(DATA)) as way, pytest.raises(PermissionError):
        moved(way, fd, len(DATA))


def test_without_a_descriptor_for_a_pipe_it_is_copied(body: SplicedBody, fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(_flags: int) -> tuple[int, int]:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "pipe2", none_left)
    with mover(body, len(DATA)) as way:
        assert isinstance(way, Copying)
        assert b"".join(moved(way, fd, len(DATA))) == DATA


def test_with_no_room_for_a_large_pipe_it_is_copied(body: SplicedBody, fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def many(*_: object) -> int:
        raise PermissionError(errno.EPERM, "pipe-user-pages-soft")

    monkeypatch.setattr(fcntl, "fcntl", many)
    before = len(os.listdir("/proc/self/fd"))
    with mover(body, len(DATA)) as way:
        assert isinstance(way, Copying)
        assert len(os.listdir("/proc/self/fd")) == before
        assert b"".join(moved(way, fd, len(DATA))) == DATA


def test_no_pipe_is_left_open_and_what_it_holds_is_gone_with_it(body: SplicedBody) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with mover(body, len(DATA)) as way:
        assert way.take(1_000) == 1_000
    assert len(os.listdir("/proc/self/fd")) == before


def bodies(origin: ScriptedOrigin) -> Iterator[tuple[Body, int]]:
    memory = MemoryOrigin()
    memory.objects["k"] = DATA
    found = memory.head("k")
    assert found is not None
    with memory.open(found, 0, len(DATA)) as body:
        yield body, len(DATA)
    bucket, there = read_by(origin)
    with bucket.open(there, 0, 1_000) as body:
        yield body, 1_000

    def in_chunks(_ask: Ask, reply: Reply) -> None:
        reply.headers["Content-Length"], reply.headers["Transfer-Encoding"] = None, "chunked"
        reply.body = f"{len(reply.body):x}\r\n".encode() + reply.body + b"\r\n0\r\n\r\n"

    origin.misdeed(in_chunks, on="GET")
    with bucket.open(there, START, STOP) as body:
        yield body, STOP - START


def test_what_is_short_or_in_memory_or_in_chunks_is_copied(origin: ScriptedOrigin, fd: int) -> None:
    seen = 0
    for body, count in bodies(origin):
        with mover(body, count) as way:
            assert isinstance(way, Copying)
            assert len(b"".join(moved(way, fd, count))) == count
            seen += 1
    assert seen == 3
