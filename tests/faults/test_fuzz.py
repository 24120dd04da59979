"""What comes from outside, mutated at random: nothing crashes, nothing is a 500, nothing takes long.

TEST_SEED repeats a run that failed; `make soak` does fifty times as many.
"""

from __future__ import annotations

import json
import os
import pathlib
import random
import resource
import socket
import time
from collections.abc import Callable

import pytest

from hotshelf import transport
from hotshelf_daemon.config import load
from hotshelf_daemon.policy import Policy, check, check_tensors
from hotshelf_daemon.provenance import Statement
from hotshelf_daemon.provenance.envelope import Envelope
from hotshelf_shared.errors import HotshelfError
from hotshelf_shared.manifest import Manifest
from hotshelf_shared.source import Source
from hotshelf_shared.wire import AcquireRequest, LeaseAnswer, RenewRequest
from tests import objects
from tests.daemon_process import Daemon
from tests.faults import bundled
from tests.faults.soaking import SEED, in_rounds

INPUTS, SOAK, ROUND = 20_000, 1_000_000, 100_000
LONGEST_S = 1.0
#: For what goes through a socket to another process, on a machine that may be busy.
PATIENCE_S = 5.0
MEMORY_BYTES = 256 << 20
TREE = objects.model("fuzz", unet=200, text_encoder=200, vae=200)
SIGNATURE = Envelope(Statement.of(objects.manifest_of(TREE)).payload("m"), b"signed").pack()
LEASE = {
    "id": "a" * 32, "grant": 1, "source": "s3://b/m", "revision": str(objects.manifest_of(TREE).revision),
    "path": "snapshots/x", "kind": "tree", "skipped": [], "expires_s": 60.0,
    "files": [{"path": "a", "digest": f"sha256:{'0' * 64}", "size": 1}],
}  # fmt: skip
SPICE = (
    b"\x00", b"\xff\xfe", b"../", b"\\", b'"', b"{", b"[", b"]", b"}", b",", b":", b"1e999", b"-1", b"NaN", b"9" * 400, b"null",
    b"\r\n", b"\n", b"\r\n\r\n", b"%00", b"sha256:", b"s3://", b"\xed\xa0\x80", b"Transfer-Encoding: chunked\r\n", b"true",
)  # fmt: skip


def mutated(data: bytes, chance: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(chance.randrange(1, 6)):
        at, much = chance.randrange(len(out) + 1), chance.randrange(1, 12)
        deed = chance.randrange(5)
        if deed == 0:
            del out[at : at + much]
        elif deed == 1:
            out[at:at] = chance.choice(SPICE) * chance.choice((1, 1, 1, 50))
        elif deed == 2 and out:
            out[at % len(out)] = chance.randrange(256)
        elif deed == 3:
            out[at:at] = out[max(0, at - much * 8) : at]
        else:
            out = out[:at] + out[at + much :] + out[at : at + much]
    return bytes(out)


def events(data: bytes) -> None:
    for event in transport.read_events(data.splitlines(), "GET /fuzz"):
        if event.get("event") == "ready":
            LeaseAnswer.parse(event.get("lease"))


def configuration(data: bytes) -> None:
    name, _, text = data.decode("latin-1").partition("=")
    load({}, {f"HOTSHELF_{name.upper()}": text.replace("\x00", "")})


def tensors(data: bytes) -> None:
    fd = os.memfd_create("fuzz")
    try:
        os.write(fd, data)
        check_tensors("a.safetensors", fd, len(data))
    finally:
        os.close(fd)


def source(data: bytes) -> None:
    Source.parse(data.decode(errors="surrogateescape"))


def signature(data: bytes) -> None:
    """The statement is read only when the key vouches for it; so here it is read whatever was done to it."""
    Statement.parse(Envelope.parse(data).payload).check_whole(TREE, "s3://b/m")


READERS: dict[str, tuple[Callable[[bytes], object], bytes]] = {
    "acquire": (AcquireRequest.parse, json.dumps({"source": "s3://b/m", "timeout_s": 3, "allow_patterns": ["*"]}).encode()),
    "renew": (RenewRequest.parse, json.dumps({"client": "a" * 16, "ids": ["b" * 32], "seen": 3}).encode()),
    "manifest": (Manifest.parse, objects.manifest_of(TREE).canonical()),
    "source": (source, b"s3://weights/a/b.safetensors@sha256:" + b"0" * 64),
    "ndjson": (events, b'{"event": "progress", "phase": "fetch"}\n' + json.dumps({"event": "ready", "lease": LEASE}).encode()),
    "safetensors": (tensors, objects.safetensors("x", 200)),
    "configuration": (configuration, b"budget=90%"),
    "signature": (signature, SIGNATURE),
    "statement": (Statement.parse, Envelope.parse(SIGNATURE).payload),
    "bundle archive": (bundled.archive, bundled.ARCHIVE),
    "bundle document": (bundled.document, bundled.DOCUMENT),
    "document": (lambda data: check("model_index.json", data, Policy()), TREE["model_index.json"]),
}


def feed(name: str, count: int, seed: str) -> None:
    reader, example = READERS[name]
    chance, before = random.Random(f"{seed} {name}"), most_resident()
    for number in range(count):
        data, began = mutated(example, chance), time.monotonic()
        try:
            reader(data)
        except HotshelfError as refusal:
            assert refusal.message, (name, data)  # noqa: PT017 - it need not be refused
        except Exception as error:
            raise AssertionError(f"TEST_SEED={seed}: input {number} of {name}, {data!r}, raised {error!r}") from error
        assert time.monotonic() - began < LONGEST_S, (name, number, data)
    assert most_resident() - before < MEMORY_BYTES


@pytest.mark.parametrize("name", READERS)
def test_what_is_mutated_is_read_or_refused(name: str) -> None:
    feed(name, INPUTS, SEED)


@pytest.mark.soak
@pytest.mark.timeout(7_200)
@pytest.mark.parametrize("name", READERS)
def test_a_million_times_over(name: str) -> None:
    in_rounds(f"fuzz {name}", SOAK, ROUND, lambda count, seed: feed(name, count, seed))


REQUESTS = [
    b"POST /v1/leases HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 20\r\n\r\n"
    + b'{"source":"no-name"}',
    b"GET /v1/snapshots/sha256:00 HTTP/1.1\r\nHost: a\r\n\r\n",
    b"POST /v1/leases/renew HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    b"PUT /v1/pins/s3%3A%2F%2Fb%2Fx HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n",
    b"DELETE /v1/leases/0123456789 HTTP/1.1\r\nHost: a\r\n\r\n",
]


def bombard(daemon: Daemon, count: int, seed: str) -> None:
    chance = random.Random(f"{seed} http")
    before = resident(daemon)
    for number in range(count):
        data = mutated(chance.choice(REQUESTS), chance)
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(PATIENCE_S)
            connection.connect(str(daemon.socket))
            answer = b""
            try:
                connection.sendall(data)
                connection.shutdown(socket.SHUT_WR)
                while piece := connection.recv(65_536):
                    answer += piece
            except ConnectionError:
                pass
            except TimeoutError as late:
                raise AssertionError(f"TEST_SEED={seed}: {number}: {data!r} was not answered in {PATIENCE_S} s") from late
        statuses = [line.split(b" ")[1] for line in answer.split(b"\r\n") if line.startswith(b"HTTP/1.")]
        assert all(not status.startswith(b"5") for status in statuses), f"TEST_SEED={seed}: {number}: {data!r}: {answer!r}"
    assert resident(daemon) - before < MEMORY_BYTES
    assert '"defect"' not in daemon.log_text
    assert daemon.call("GET", "/v1/health").status == 200


def most_resident() -> int:
    """Bytes that this process has had at once, at the most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def resident(daemon: Daemon) -> int:
    return int(pathlib.Path(f"/proc/{daemon.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_no_request_is_a_500(make_daemon: Callable[..., Daemon]) -> None:
    bombard(make_daemon(), INPUTS, SEED)


@pytest.mark.soak
@pytest.mark.timeout(7_200)
def test_no_request_of_a_million_is_a_500(make_daemon: Callable[..., Daemon]) -> None:
    daemon = make_daemon()
    in_rounds("fuzz requests", SOAK, ROUND, lambda count, seed: bombard(daemon, count, seed))
