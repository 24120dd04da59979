"""A worker hands blobs in: right bytes become a blob that waits to be bound; of anything else nothing is left."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests import objects
from tests.conftest import BUCKET
from tests.daemon.conftest import MakeDaemon, Put
from tests.daemon.looking import assert_index_and_disk_agree, blobs_on_disk, granted, names_in, refused, rows, tree_of, value
from tests.daemon.test_socket import head, raw
from tests.daemon.workers import GROUP, OTHER, WORKER, Worker
from tests.daemon_process import Daemon, Reply, UnixConnection
from tests.faults.invariants import wrongs_after_restart
from tests.objects import MIB, Digest
from tests.servers.recorder import Recorder
from tests.servers.seaweedfs import SeaweedFS
from tests.waiting import wait_until

BUDGET = 1_000_000


@pytest.fixture
def mine(make_daemon: MakeDaemon) -> Daemon:
    """A daemon without origins, that may be killed."""
    return make_daemon(budget=BUDGET)


class Upload:
    """A hand-in whose body comes when the test says so."""

    def __init__(self, daemon: Daemon, digest: str, size: int, **headers: str) -> None:
        self.connection = UnixConnection(daemon.socket)
        self.connection.putrequest("PUT", f"/v1/blobs/{digest}")
        for name, text in {"Content-Length": str(size), **headers}.items():
            self.connection.putheader(name, text)
        self.connection.endheaders()

    def send(self, data: bytes) -> None:
        self.connection.send(data)

    def reply(self) -> Reply:
        response = self.connection.getresponse()
        text = response.read()
        headers = {name.lower(): value for name, value in response.getheaders()}
        return Reply(response.status, json.loads(text) if text else None, headers)

    def hang_up(self) -> None:
        self.connection.close()


@contextlib.contextmanager
def half_sent(daemon: Daemon, data: bytes) -> Iterator[Upload]:
    """A hand-in of which the daemon has the first half, and waits for the second."""
    upload = Upload(daemon, Digest.of(data), len(data))
    try:
        upload.send(data[: len(data) // 2])
        wait_until(lambda: names_in(daemon, "ingest"), what="the hand-in to begin")
        yield upload
    finally:
        upload.hang_up()


def assert_nothing_left(daemon: Daemon) -> None:
    wait_until(lambda: not rows(daemon, "SELECT id FROM v_transfers"), what="the reservation to be given back")
    assert (blobs_on_disk(daemon), names_in(daemon, "ingest"), names_in(daemon, "trash")) == ({}, [], [])
    assert sum(granted(daemon.call("GET", "/v1/status"))["held_bytes"].values()) == 0
    assert rows(daemon, "SELECT * FROM v_blobs") == []


# ---- right bytes


@pytest.mark.parametrize("size", [0, 1, 70_000, 3 * MIB + 1], ids=["empty", "a byte", "small", "several batches"])
def test_bytes_that_were_handed_in_are_held_under_their_digest(make_daemon: MakeDaemon, size: int) -> None:
    daemon = make_daemon()
    worker, data = Worker(daemon), objects.noise("x", size)
    assert not worker.has(data)
    assert worker.put(data).status == 201
    assert worker.has(data)
    assert blobs_on_disk(daemon) == {Digest.of(data): size}
    assert_index_and_disk_agree(daemon)
    assert names_in(daemon, "ingest") == []


def test_what_is_held_already_is_not_sent_again(mine: Daemon) -> None:
    worker, data = Worker(mine), objects.noise("x", 500_000)
    assert worker.put(data).status == 201
    again = Upload(mine, Digest.of(data), len(data), Expect="100-continue")
    assert again.reply().status == 204  # an answer, and not a byte of the body was asked for
    again.hang_up()
    assert worker.put(data).status == 204  # a worker that does not wait for leave is answered the same
    assert granted(mine.call("GET", "/v1/health"))


def test_the_body_is_asked_for_when_there_is_room_for_it(mine: Daemon) -> None:
    data = objects.noise("x", 1_000)
    answer = raw(
        mine, head(f"Content-Length: {len(data)}", "Expect: 100-continue", start=f"PUT /v1/blobs/{Digest.of(data)} HTTP/1.1")
    )
    assert answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\n")


def test_a_blob_that_an_origin_sent_is_not_asked_for_again(make_daemon: MakeDaemon, seaweedfs: SeaweedFS, put: Put) -> None:
    daemon = make_daemon(origins={"weed": seaweedfs.settings(BUCKET)})
    tree = {"a.safetensors": objects.noise("a", 3_000)}
    granted(daemon.acquire(put(tree)))
    assert Worker(daemon).has(tree["a.safetensors"])
    assert Worker(daemon).put(tree["a.safetensors"]).status == 204


def test_many_workers_may_hand_in_the_same_at_once(mine: Daemon) -> None:
    data = objects.noise("x", 100_000)
    with ThreadPoolExecutor(6) as pool:
        replies = list(pool.map(lambda _: Worker(mine).put(data).status, range(6)))
    assert set(replies) <= {201, 204}
    assert blobs_on_disk(mine) == {Digest.of(data): len(data)}
    assert names_in(mine, "ingest") == []
    assert_index_and_disk_agree(mine)


def test_a_download_of_what_is_being_handed_in_goes_its_own_way(
    make_daemon: MakeDaemon, seaweedfs: SeaweedFS, put: Put
) -> None:
    daemon = make_daemon(origins={"weed": seaweedfs.settings(BUCKET)})
    tree = {"a.safetensors": objects.noise("a", 300_000)}
    with half_sent(daemon, tree["a.safetensors"]) as upload:
        assert tree_of(daemon, granted(daemon.acquire(put(objects.published(tree))))) == tree
        upload.send(tree["a.safetensors"][150_000:])
        assert upload.reply().status == 201
    assert_index_and_disk_agree(daemon)
    assert names_in(daemon, "ingest") == []


# ---- wrong bytes


def test_other_bytes_than_promised_leave_nothing(mine: Daemon) -> None:
    data = objects.noise("x", 5_000)
    problem = refused(Worker(mine).put(data, Digest.of(b"something else")), "integrity_error")
    assert Digest.of(data) in problem["detail"]
    assert_nothing_left(mine)
    assert 'hotshelf_verify_failures_total{reason="digest"} 1.0' in mine.get_http("/metrics").body


@pytest.mark.parametrize("evil", [pickle.dumps(os.getcwd), pickle.dumps({"weights": [1.0] * 500}, 4)], ids=["calls", "data"])
def test_bytes_that_execute_are_refused_whatever_they_will_be_called(mine: Daemon, evil: bytes) -> None:
    problem = refused(Worker(mine).put(evil), "unsafe_content")
    assert "pickle" in problem["detail"]
    assert_nothing_left(mine)


@pytest.mark.parametrize("digest", ["sha256:12", "sha256:" + "A" * 64, "md5:" + "0" * 32, "..%2F..%2Fetc", "x"])
def test_what_is_no_digest_is_refused(mine: Daemon, digest: str) -> None:
    refused(mine.call("PUT", f"/v1/blobs/{digest}", b"x"), "invalid_request")
    reply = mine.call("HEAD", f"/v1/blobs/{digest}")
    assert (reply.status, reply.headers["x-hotshelf-code"], reply.body) == (400, "invalid_request", None)


def test_what_is_not_held_is_not_found_by_its_code_too(mine: Daemon) -> None:
    reply = mine.call("HEAD", f"/v1/blobs/{Digest.of(b'nobody')}")
    assert (reply.status, reply.headers["x-hotshelf-code"], reply.body) == (404, "not_found", None)


# ---- lengths


def test_a_body_without_a_length_is_refused(mine: Daemon) -> None:
    start = f"PUT /v1/blobs/{Digest.of(b'abc')} HTTP/1.1"
    for request in (
        head(start=start),
        head("Transfer-Encoding: chunked", start=start) + b"3\r\nabc\r\n0\r\n\r\n",
        head("Content-Length: 3", "Content-Encoding: gzip", start=start) + b"abc",
    ):
        assert b'"code": "invalid_request"' in raw(mine, request)
    assert_nothing_left(mine)


def test_what_can_never_fit_is_refused_before_its_body_comes(mine: Daemon) -> None:
    upload = Upload(mine, Digest.of(b"x"), BUDGET + 1)
    refused(upload.reply(), "too_large")
    upload.hang_up()
    refused(Upload(mine, Digest.of(b"x"), 1 << 62).reply(), "too_large")
    assert_nothing_left(mine)


def test_what_does_not_fit_now_is_refused_before_its_body_comes(
    make_daemon: MakeDaemon, seaweedfs: SeaweedFS, put: Put
) -> None:
    daemon = make_daemon(origins={"weed": seaweedfs.settings(BUCKET)}, budget=BUDGET)
    source = put({"a.safetensors": objects.noise("a", 600_000)})
    lease = granted(daemon.acquire(source))
    problem = refused(Upload(daemon, Digest.of(b"x"), 600_000).reply(), "insufficient_space")
    assert problem["retryable"]
    assert source in problem["detail"]
    assert rows(daemon, "SELECT * FROM v_transfers") == []
    daemon.call("DELETE", f"/v1/leases/{lease['id']}")
    assert Worker(daemon).put(objects.noise("b", 600_000)).status == 201  # what nobody holds makes room
    assert rows(daemon, "SELECT revision FROM v_snapshots") == []


def test_hand_ins_under_way_count_against_the_budget(mine: Daemon) -> None:
    with half_sent(mine, objects.noise("a", 700_000)):
        refused(Worker(mine).put(objects.noise("b", 400_000)), "insufficient_space")
        assert value(mine, "SELECT size FROM v_transfers") == 700_000
        assert granted(mine.call("GET", "/v1/status"))["held_bytes"]["ingest"] == 700_000
        granted(mine.call("POST", "/v1/collect"))  # it is nobody's litter either
        assert value(mine, "SELECT count(*) FROM v_transfers") == 1


# ---- workers that go away


def test_a_worker_that_dies_half_way_leaves_nothing(mine: Daemon) -> None:
    with half_sent(mine, objects.noise("x", 800_000)):
        pass
    assert_nothing_left(mine)
    assert Worker(mine).put(objects.noise("y", 900_000)).status == 201


def test_a_worker_that_brings_nothing_more_is_given_up(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon(handin_idle_s=0.3)
    with half_sent(daemon, objects.noise("x", 300_000)) as upload:
        refused(upload.reply(), "timeout")
    assert_nothing_left(daemon)


def test_more_hand_ins_at_once_than_may_be_are_told_to_come_again(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon(max_handins_per_uid=1)
    with half_sent(daemon, objects.noise("x", 300_000)) as upload:
        reply = Worker(daemon).put(b"y" * 100)
        assert refused(reply, "busy")["retryable"]
        assert reply.headers["retry-after"] == "1"
        upload.send(objects.noise("x", 300_000)[150_000:])
        assert upload.reply().status == 201
    assert Worker(daemon).put(b"y" * 100).status == 201


@pytest.mark.root
def test_one_uid_s_hand_ins_do_not_keep_another_s_out(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon(max_handins_per_uid=1, socket_group=str(GROUP))
    os.chmod(daemon.socket.parent, 0o755)
    with half_sent(daemon, objects.noise("x", 300_000)):
        assert Worker(daemon, WORKER).put(b"y" * 100).status == 201
        assert Worker(daemon, OTHER).put(b"z" * 100).status == 201


# ---- until bound


def test_what_waits_to_be_bound_stays_and_is_no_waste(mine: Daemon) -> None:
    worker, data = Worker(mine), objects.noise("x", 400_000)
    worker.put(data)
    granted(mine.call("POST", "/v1/collect"))
    assert worker.has(data)
    assert rows(mine, "SELECT * FROM v_waste") == []
    refused(worker.put(objects.noise("y", 700_000)), "insufficient_space")


def test_what_nobody_binds_in_its_time_is_waste(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon(handin_keep_s=0.2)
    Worker(daemon).put(b"x" * 100)
    wait_until(lambda: rows(daemon, "SELECT subject FROM v_waste"), what="its time to pass")
    granted(daemon.call("POST", "/v1/collect"))
    assert blobs_on_disk(daemon) == {}


def test_a_restart_keeps_what_waits_to_be_bound(mine: Daemon) -> None:
    worker, data = Worker(mine), objects.noise("x", 400_000)
    worker.put(data)
    mine.restart()
    granted(mine.call("POST", "/v1/collect"))
    assert worker.has(data)
    mine.restart(handin_keep_s=0.2)
    wait_until(lambda: rows(mine, "SELECT subject FROM v_waste"), what="the time that a restart gives to pass")


def test_asking_for_a_blob_keeps_it(make_daemon: MakeDaemon, seaweedfs: SeaweedFS, put: Put) -> None:
    """What a worker heard is here, and so did not send, must still be here when it binds."""
    daemon = make_daemon(origins={"weed": seaweedfs.settings(BUCKET)})
    tree = {"a.safetensors": objects.noise("a", 3_000)}
    lease = granted(daemon.acquire(put(tree)))
    assert Worker(daemon).has(tree["a.safetensors"])
    daemon.call("DELETE", f"/v1/leases/{lease['id']}")
    assert granted(daemon.call("DELETE", f"/v1/snapshots/{lease['revision']}"))
    assert Worker(daemon).has(tree["a.safetensors"])


def test_a_daemon_killed_while_bytes_come_leaves_nothing_of_them(mine: Daemon) -> None:
    done = objects.noise("done", 100_000)
    Worker(mine).put(done)
    with half_sent(mine, objects.noise("x", 300_000)):
        mine.kill9()
    assert list(wrongs_after_restart(mine.store, [])) == []
    mine.start()
    assert blobs_on_disk(mine) == {Digest.of(done): len(done)}
    assert (names_in(mine, "ingest"), rows(mine, "SELECT * FROM v_transfers")) == ([], [])
    assert Worker(mine).put(objects.noise("x", 300_000)).status == 201


def test_a_daemon_that_is_told_to_stop_does_not_wait_for_a_worker_for_ever(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon(drain_s=0.3)
    with half_sent(daemon, objects.noise("x", 300_000)):
        assert daemon.terminate() == 0
    daemon.start()
    assert_nothing_left(daemon)


def test_a_blob_that_was_handed_in_is_not_fetched(
    make_daemon: MakeDaemon, seaweedfs: SeaweedFS, recorder: Recorder, put: Put, prefix: str
) -> None:
    """A blob that a worker handed in is the blob that a published tree names."""
    daemon = make_daemon(origins={"weed": seaweedfs.settings(BUCKET, endpoint_url=recorder.endpoint_url)})
    tree = {"a.safetensors": objects.noise("a", 30_000), "b.safetensors": objects.noise("b", 20_000)}
    source = put(objects.published(tree))
    Worker(daemon).put(tree["a.safetensors"])
    assert tree_of(daemon, granted(daemon.acquire(source))) == tree
    assert recorder.bytes_for(f"{prefix}/blobs/") == 20_000


@pytest.mark.needs("strace")
def test_a_disk_that_is_full_refuses_the_bytes_and_keeps_nothing(make_daemon: MakeDaemon) -> None:
    inject = "inject=fallocate:error=ENOSPC:when=1"
    strace = ("strace", "-f", "-qq", "-o", os.devnull, "-e", "trace=fallocate", "-e", inject)
    daemon = make_daemon(prefix=strace)
    data = objects.noise("x", 300_000)
    assert "No space left" in refused(Worker(daemon).put(data), "insufficient_space")["detail"]
    assert_nothing_left(daemon)
    assert Worker(daemon).put(data).status == 201
