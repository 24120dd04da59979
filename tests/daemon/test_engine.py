"""What a download leaves in the page cache, how it takes turns with others, and what its connections come to."""

from __future__ import annotations

import json
import os
import pathlib
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from awscrt.checksums import crc64nvme

from hotshelf_daemon.config.settings import FetchSettings
from hotshelf_daemon.ingest.frontier import BEHIND_BYTES, Frontier
from hotshelf_shared import memory
from hotshelf_shared.digest import Digest
from tests import objects
from tests.client import page_cache
from tests.daemon.looking import rows
from tests.daemon_process import Daemon
from tests.servers.nginx import Nginx
from tests.servers.paced import Paced
from tests.servers.recorder import Recorder
from tests.waiting import wait_until

MIB = 1 << 20
MakeDaemon = Callable[..., Daemon]


# ---- the page cache


@pytest.mark.parametrize(("way", "cached"), [("keep", True), ("drop", False), ("auto", True)])
def test_what_was_fetched_is_in_the_page_cache_if_it_is_to_be(
    make_daemon: MakeDaemon, tmp_path: pathlib.Path, way: str, *, cached: bool
) -> None:
    page_cache.drop(page_cache.written(tmp_path / "probe", MIB))  # skips where pages cannot be dropped
    weights = objects.safetensors(way, 8 * MIB)
    objects.write(tmp_path / "origin", {"a.safetensors": weights})
    daemon = make_daemon(roots=[str(tmp_path / "origin")], fetch={"page_cache": way})
    answer = daemon.acquire(f"file://{tmp_path}/origin/a.safetensors")
    assert answer.status == 200, answer.body
    hexed = Digest.of(weights).hex
    blob = daemon.store / "blobs" / "sha256" / hexed[:2] / hexed
    stayed = page_cache.cached_bytes(blob)
    assert stayed == 8 * MIB if cached else stayed <= MIB  # its header is read once more


def test_pages_are_let_go_behind_the_hash_while_a_file_arrives(tmp_path: pathlib.Path) -> None:
    path, size = tmp_path / "big", 3 * BEHIND_BYTES
    page_cache.drop(page_cache.written(tmp_path / "probe", MIB))
    piece = memoryview(os.urandom(16 * MIB))
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    frontier = Frontier(fd, size, keep=False)
    for at in range(0, size, len(piece)):
        os.pwrite(fd, piece, at)
        assert frontier.own(at)
        frontier.feed(piece)
        frontier.disown()
        frontier.arrived(at, at + len(piece), crc64nvme(piece))
        os.fsync(fd)  # only what is with the disk can be let go
        frontier.let_go()
    os.close(fd)
    assert page_cache.cached_bytes(path) <= 2 * BEHIND_BYTES
    assert page_cache.cached_bytes(path, 2 * BEHIND_BYTES) == BEHIND_BYTES


def test_a_set_that_memory_cannot_hold_does_not_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "room", lambda keep: 1_000.0)
    assert [FetchSettings().keeps_pages(size) for size in (1_000, 1_001)] == [True, False]


# ---- connections


@pytest.fixture
def slow(tmp_path: pathlib.Path) -> Iterator[Paced]:
    with Paced(tmp_path / "slow", connection_rate=4 * MIB) as origin:
        yield origin


def from_(origin: Paced | Nginx | Recorder) -> dict[str, object]:
    return {"o": {"endpoint_url": origin.endpoint_url, "unsigned": True}}


def test_an_origin_that_is_slow_on_each_connection_is_read_on_many(make_daemon: MakeDaemon, slow: Paced) -> None:
    size = 48 * MIB
    objects.write(slow.root / "weights", {"a.safetensors": objects.safetensors("many", size)})
    daemon = make_daemon(origins=from_(slow), fetch={"segment_bytes": MIB, "connections": 16})
    began = time.monotonic()
    assert daemon.acquire("s3://weights/a.safetensors").status == 200
    assert time.monotonic() - began < size / (4 * MIB) / 4  # in a quarter of what one connection would take


def test_an_origin_that_refuses_more_than_a_few_gets_a_few(make_daemon: MakeDaemon, tmp_path: pathlib.Path) -> None:
    weights = objects.safetensors("few", 24 * MIB)
    with Paced(tmp_path / "few", connection_rate=8 * MIB, most_at_once=3) as origin:
        objects.write(origin.root / "weights", {"a.safetensors": weights})
        daemon = make_daemon(origins=from_(origin), fetch={"segment_bytes": MIB})
        answer = daemon.acquire("s3://weights/a.safetensors")
        assert answer.status == 200, answer.body
    assert (daemon.store / answer.body["path"] / "a.safetensors").read_bytes() == weights


def test_a_preload_stands_still_while_somebody_waits_for_something_else(make_daemon: MakeDaemon, slow: Paced) -> None:
    tree = {f"{name}.safetensors": objects.safetensors(name, size * MIB) for name, size in (("behind", 64), ("now", 8))}
    objects.write(slow.root / "weights", tree)
    models = {"behind": {"source": "s3://weights/behind.safetensors", "preload": True}}
    daemon = make_daemon(origins=from_(slow), models=models, fetch={"segment_bytes": MIB}, prefetch={"max_rate": "8MiB/s"})
    began = time.monotonic()
    assert daemon.acquire("s3://weights/now.safetensors").status == 200
    assert time.monotonic() - began < 3  # alone it takes a quarter of a second
    assert daemon.call("GET", "/v1/snapshots").body["snapshots"][0]["sources"] == ["s3://weights/now.safetensors"]


def test_a_preload_that_somebody_asks_for_is_not_slowed_any_more(make_daemon: MakeDaemon, slow: Paced) -> None:
    objects.write(slow.root / "weights", {"a.safetensors": objects.safetensors("asked", 16 * MIB)})
    models = {"a": {"source": "s3://weights/a.safetensors", "preload": True}}
    daemon = make_daemon(origins=from_(slow), models=models, fetch={"segment_bytes": MIB}, prefetch={"max_rate": "64KiB/s"})
    began = time.monotonic()
    assert daemon.acquire("a").status == 200
    assert time.monotonic() - began < 30  # at the rate of a preload it would take four minutes


def test_a_preload_that_somebody_asks_for_does_not_wait_behind_other_preloads(make_daemon: MakeDaemon, slow: Paced) -> None:
    for name, files in (("many", 12), ("few", 2)):
        tree = {f"{number}.safetensors": objects.safetensors((name, number), 2 * MIB) for number in range(files)}
        objects.write(slow.root / "weights" / name, objects.published(tree))
    models = {name: {"source": f"s3://weights/{name}", "preload": True} for name in ("many", "few")}
    daemon = make_daemon(origins=from_(slow), models=models, fetch={"segment_bytes": MIB}, prefetch={"max_rate": "64KiB/s"})
    wait_until(lambda: len(rows(daemon, "SELECT * FROM v_transfers")) == 14, what="both to be begun")
    began = time.monotonic()
    assert daemon.acquire("few").status == 200
    assert time.monotonic() - began < 30  # the others take six minutes


def test_a_preload_whose_client_has_left_does_not_hold_up_others(make_daemon: MakeDaemon, slow: Paced) -> None:
    tree = {f"{name}.safetensors": objects.safetensors(name, size) for name, size in (("left", 64 * MIB), ("other", 100_000))}
    objects.write(slow.root / "weights", tree)
    models = {"left": {"source": "s3://weights/left.safetensors", "preload": True}}
    daemon = make_daemon(origins=from_(slow), models=models, fetch={"segment_bytes": 16 * MIB}, prefetch={"max_rate": "1MiB/s"})
    wait_until(lambda: rows(daemon, "SELECT * FROM v_transfers"), what="the preload to be begun")
    assert daemon.acquire("left", timeout_s=1).body["code"] == "timeout"
    began = time.monotonic()
    assert daemon.acquire("s3://weights/other.safetensors").status == 200
    assert time.monotonic() - began < 15  # the preload takes a minute


def test_a_trace_says_how_long_after_the_last_byte_a_file_was_known_to_be_right(make_daemon: MakeDaemon, slow: Paced) -> None:
    objects.write(slow.root / "weights", {"a.safetensors": objects.safetensors("traced", 6 * MIB)})
    daemon = make_daemon(origins=from_(slow), fetch={"segment_bytes": MIB})
    assert daemon.acquire("s3://weights/a.safetensors").status == 200
    lines = [json.loads(line) for line in daemon.log_text.splitlines()]
    (fetched,) = [line for line in lines if line["event"] == "fetched"]
    assert (fetched["origin"], fetched["key"], fetched["bytes"]) == ("o", "a.safetensors", 6 * MIB)
    assert 0 <= fetched["verdict_ms"] < 2_000
    assert fetched["seconds"] >= 6 / 4 / 16


def test_a_request_that_goes_quiet_at_the_end_is_overtaken_and_not_waited_for(
    make_daemon: MakeDaemon, tmp_path: pathlib.Path
) -> None:
    weights = objects.safetensors("quiet", 8 * MIB)
    with Nginx(tmp_path / "nginx") as origin, Recorder(origin.endpoint_url) as recorder:
        objects.write(origin.root / "weights", {"a.safetensors": weights})
        recorder.before(lambda _: recorder.stall("", after_bytes=100_000, times=1), method="GET", times=1)
        daemon = make_daemon(origins=from_(recorder), fetch={"segment_bytes": MIB, "connections": 4})
        began = time.monotonic()
        answer = daemon.acquire("s3://weights/a.safetensors")
        assert answer.status == 200, answer.body
        assert time.monotonic() - began < 15  # silence is borne for 20 s
        assert '"a slow request is overtaken"' in daemon.log_text
        recorder.resume()
        assert (daemon.store / answer.body["path"] / "a.safetensors").read_bytes() == weights
        assert recorder.bytes_for("a.safetensors") <= 9 * MIB


# ---- a web server in front


@pytest.mark.needs("nginx")
def test_what_was_pushed_is_fetched_from_a_plain_web_server(make_daemon: MakeDaemon, tmp_path: pathlib.Path) -> None:
    tree = objects.model("web")
    with Nginx(tmp_path / "nginx") as origin:
        objects.write(origin.root / "weights" / "models" / "sd", objects.published(tree))
        daemon = make_daemon(origins=from_(origin))
        answer = daemon.acquire("s3://weights/models/sd")
        assert answer.status == 200, answer.body
        assert objects.read(daemon.store / answer.body["path"]) == tree
        missing = daemon.acquire("s3://weights/models")
        assert (missing.status, missing.body["code"]) != (503, "origin_unavailable"), missing.body


def test_hits_are_answered_while_the_first_client_of_all_is_made(make_daemon: MakeDaemon, slow: Paced) -> None:
    """Making it parses megabytes of JSON: not with everybody waiting."""
    objects.write(slow.root / "weights", {"a.safetensors": objects.safetensors("first", MIB)})
    daemon = make_daemon(origins=from_(slow))
    acquiring = threading.Thread(target=daemon.acquire, args=("s3://weights/a.safetensors",))
    acquiring.start()
    longest = 0.0
    while acquiring.is_alive():
        began = time.monotonic()
        assert daemon.call("GET", "/v1/health").status == 200
        longest = max(longest, time.monotonic() - began)
    assert longest < 2
