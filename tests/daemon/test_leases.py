"""A lease ends by its own uid, by its client's declaration, by its time, or with the process that kept it; by nothing else."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from typing import Any

import pytest

from tests import objects
from tests.conftest import BUCKET
from tests.daemon.conftest import MakeDaemon, Put
from tests.daemon.looking import granted, refused, rows, tree_of, value
from tests.daemon_process import Daemon, UnixConnection
from tests.servers.seaweedfs import SeaweedFS
from tests.waiting import wait_until

CLIENT = "testclient01"
TTL = 1.5


@pytest.fixture
def quick(make_daemon: MakeDaemon, seaweedfs: SeaweedFS) -> Daemon:
    """Leases of a moment."""
    return make_daemon(origins={"weed": seaweedfs.settings(BUCKET)}, lease_ttl_s=TTL, lease_eof_s=0.2)


@pytest.fixture
def source(put: Put) -> str:
    return put({"a.safetensors": b"x" * 200})


def held(daemon: Daemon, *ids: str) -> list[str]:
    found = {row["id"] for row in rows(daemon, "SELECT id FROM v_leases")}
    return [id_ for id_ in ids if id_ in found]


def acquired(daemon: Daemon, source: str, client: str | None = CLIENT, **more: Any) -> dict[str, Any]:
    return granted(daemon.acquire(source, **({"client": client} if client else {}), **more))  # type: ignore[no-any-return]


def renew(daemon: Daemon, ids: list[str], seen: int, client: str = CLIENT) -> dict[str, Any]:
    return granted(daemon.call("POST", "/v1/leases/renew", {"client": client, "ids": ids, "seen": seen}))  # type: ignore[no-any-return]


# ---- time


def test_a_lease_that_nobody_renews_ends_with_its_time(quick: Daemon, source: str) -> None:
    lease = acquired(quick, source, client=None)
    assert lease["expires_s"] == TTL
    assert held(quick, lease["id"]) == [lease["id"]]
    wait_until(lambda: not held(quick, lease["id"]), timeout_s=TTL + 5)
    refused(quick.call("DELETE", f"/v1/leases/{lease['id']}"), "not_found")


def test_a_lease_held_for_longer_outlives_the_others(quick: Daemon, source: str) -> None:
    short, long = acquired(quick, source, client=None), acquired(quick, source, client=None, hold_s=3_600)
    assert long["expires_s"] == 3_600
    wait_until(lambda: not held(quick, short["id"]), timeout_s=TTL + 5)
    assert held(quick, long["id"])


def test_a_hold_has_the_operator_s_bound(make_daemon: MakeDaemon, seaweedfs: SeaweedFS, source: str) -> None:
    daemon = make_daemon(origins={"weed": seaweedfs.settings(BUCKET)}, lease_hold_max_s=10)
    assert acquired(daemon, source, hold_s=1e6)["expires_s"] == 10


def test_a_lease_that_is_renewed_lives_on(quick: Daemon, source: str) -> None:
    kept, lost = acquired(quick, source), acquired(quick, source, client=None)
    with contextlib.closing(UnixConnection(quick.socket)) as line:  # an EOF would shorten it

        def renewed_until_the_other_is_gone() -> bool:
            body = {"client": CLIENT, "ids": [kept["id"]], "seen": kept["grant"]}
            line.request("POST", "/v1/leases/renew", json.dumps(body))
            assert json.loads(line.getresponse().read())["kept"] == [kept["id"]]
            return not held(quick, lost["id"])

        wait_until(renewed_until_the_other_is_gone, timeout_s=TTL + 5, every_s=0.1)
    assert held(quick, kept["id"])


# ---- declarations


def test_what_a_declaration_leaves_out_is_void_at_once(shared: Daemon, source: str) -> None:
    one, two, three = (acquired(shared, source) for _ in range(3))
    assert renew(shared, [two["id"]], seen=three["grant"])["kept"] == [two["id"]]
    assert held(shared, one["id"], two["id"], three["id"]) == [two["id"]]
    renew(shared, [], seen=three["grant"])
    assert held(shared, two["id"]) == []


def test_a_grant_still_on_its_way_survives_a_declaration(shared: Daemon, source: str) -> None:
    one, two = acquired(shared, source), acquired(shared, source)
    assert renew(shared, [one["id"]], seen=one["grant"])["kept"] == [one["id"]]
    assert held(shared, one["id"], two["id"]) == [one["id"], two["id"]]


def test_a_declaration_touches_no_other_client(shared: Daemon, source: str) -> None:
    mine, theirs = acquired(shared, source), acquired(shared, source, client="otherclient2")
    assert renew(shared, [mine["id"], theirs["id"], "nonsense"], seen=theirs["grant"])["kept"] == [mine["id"]]
    assert held(shared, theirs["id"])


def test_a_client_may_hold_thousands_of_leases(shared: Daemon, source: str) -> None:
    """A declaration names them all, so its body is larger than an acquire's."""
    lease = acquired(shared, source)
    ids = [lease["id"], *(f"{number:032x}" for number in range(5_000))]
    assert renew(shared, ids, seen=lease["grant"])["kept"] == [lease["id"]]


@pytest.mark.parametrize(
    "body",
    [{}, {"client": CLIENT}, {"client": CLIENT, "ids": "x", "seen": 0}, {"client": CLIENT, "ids": [1], "seen": 0},
     {"client": CLIENT, "ids": [], "seen": -1}, {"client": CLIENT, "ids": [], "seen": 0, "more": 1},
     {"client": "x", "ids": [], "seen": 0}, {"client": CLIENT, "ids": ["x"] * 10_001, "seen": 0}],
)  # fmt: skip
def test_a_declaration_that_makes_no_sense_is_refused(shared: Daemon, body: dict[str, Any]) -> None:
    refused(shared.call("POST", "/v1/leases/renew", body), "invalid_request")


# ---- letting go


def test_a_released_lease_is_gone_and_is_released_once(shared: Daemon, source: str) -> None:
    lease = acquired(shared, source)
    assert shared.call("DELETE", f"/v1/leases/{lease['id']}").status == 204
    assert held(shared, lease["id"]) == []
    refused(shared.call("DELETE", f"/v1/leases/{lease['id']}"), "not_found")


@pytest.mark.parametrize(
    "id_", ["nonsense", "..%2f..%2fetc", "%00", "0" * 5_000, "'; DROP TABLE leases; --".replace(" ", "%20")]
)
def test_an_id_that_is_none_is_not_found(shared: Daemon, id_: str) -> None:
    assert shared.call("DELETE", f"/v1/leases/{id_}").status in (400, 404)


# ---- processes

WORKER = """
import sys, hotshelf
lease = hotshelf.acquire(sys.argv[1], timeout=60)
print(lease.id, flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def worker(daemon: Daemon, source: str) -> Any:
    argv = [sys.executable, "-c", WORKER, source]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=daemon.environment) as process:
        try:
            assert process.stdout is not None
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


def test_a_killed_worker_frees_its_leases_in_a_moment(make_daemon: MakeDaemon, seaweedfs: SeaweedFS, source: str) -> None:
    daemon = make_daemon(origins={"weed": seaweedfs.settings(BUCKET)}, lease_ttl_s=600, lease_eof_s=0.2)
    with worker(daemon, source) as (process, id_):
        renewed = "SELECT renewed_at > granted_at FROM leases WHERE id = ?"  # the views have whole seconds
        wait_until(lambda: value(daemon, renewed, id_), what="the keeper's connection to be known")
        os.kill(process.pid, signal.SIGKILL)
        process.wait(10)
        wait_until(lambda: not held(daemon, id_), timeout_s=10, what="the dead worker's lease to go")


def test_a_worker_s_keeper_keeps_its_lease_over_many_lifetimes_and_a_restart(quick: Daemon, source: str) -> None:
    with worker(quick, source) as (process, id_):
        other = acquired(quick, source, client=None)
        wait_until(lambda: not held(quick, other["id"]), timeout_s=TTL + 5)
        assert held(quick, id_)
        quick.kill9()
        quick.start()
        other = acquired(quick, source, client=None)
        wait_until(lambda: not held(quick, other["id"]), timeout_s=TTL + 5)
        assert held(quick, id_)
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(10) == 0
        wait_until(lambda: not held(quick, id_), timeout_s=10)


def test_a_restart_keeps_every_lease_for_one_more_lifetime(quick: Daemon, put: Put) -> None:
    tree = {"a.safetensors": b"kept" * 100}
    lease = acquired(quick, put(tree), hold_s=4, client=None)
    quick.kill9()
    quick.start()
    assert held(quick, lease["id"])
    assert tree_of(quick, lease) == tree
    refused(quick.call("DELETE", f"/v1/snapshots/{lease['revision']}"), "in_use")
    wait_until(lambda: not held(quick, lease["id"]), timeout_s=10)
    assert granted(quick.call("DELETE", f"/v1/snapshots/{lease['revision']}"))["freed_bytes"] == objects.size_of(tree)


def test_a_lease_whose_answer_was_never_given_has_no_holder_after_a_restart(
    make_daemon: MakeDaemon, seaweedfs: SeaweedFS, recorder: Any, put: Put, prefix: str
) -> None:
    daemon = make_daemon(origins={"weed": seaweedfs.settings(BUCKET, endpoint_url=recorder.endpoint_url)})
    source = put({"a.safetensors": b"x" * 5_000})
    recorder.stall(f"{prefix}/a", after_bytes=10)
    with contextlib.closing(UnixConnection(daemon.socket)) as connection:
        connection.request("POST", "/v1/leases", json.dumps({"source": source}))
        wait_until(lambda: value(daemon, "SELECT count(*) FROM v_leases") == 1)
        daemon.kill9()
    recorder.resume()
    daemon.start()
    assert rows(daemon, "SELECT * FROM v_leases") == []
    assert tree_of(daemon, granted(daemon.acquire(source))) == {"a.safetensors": b"x" * 5_000}
