"""The budget holds; what goes is what nobody holds, the longest unused first; a refusal says who holds what."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from queue import Queue
from typing import Any
from urllib.parse import quote

import pytest

from hotshelf_shared.wire import NDJSON
from tests import objects
from tests.conftest import BUCKET
from tests.daemon.conftest import MakeDaemon, Put
from tests.daemon.looking import (
    assert_index_and_disk_agree,
    blobs_on_disk,
    granted,
    names_in,
    refused,
    rows,
    tree_of,
    value,
)
from tests.daemon_process import Daemon, UnixConnection
from tests.objects import Digest
from tests.servers.recorder import Recorder
from tests.servers.seaweedfs import SeaweedFS
from tests.waiting import wait_until

SIZE = 100_000


@pytest.fixture(scope="module")
def kept_small(seaweedfs: SeaweedFS, wire: Recorder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with Daemon(
        tmp_path_factory.mktemp("small"),
        origins={"weed": seaweedfs.settings(BUCKET, endpoint_url=wire.endpoint_url)},
        budget=3 * SIZE + 1_000,
        revalidate_s=600,
        fetch={"attempts": 1},
    ) as daemon:
        yield daemon


@pytest.fixture
def small(kept_small: Daemon, wire: Recorder) -> Iterator[Daemon]:
    """A shelf for three models, empty again after each test; only its history stays."""
    yield kept_small
    wire.heal()
    for row in rows(kept_small, "SELECT id FROM v_leases"):
        kept_small.call("DELETE", f"/v1/leases/{row['id']}")
    for row in rows(kept_small, "SELECT target FROM v_pins"):
        kept_small.call("DELETE", f"/v1/pins/{quote(row['target'], safe='')}")
    for row in rows(kept_small, "SELECT revision FROM v_snapshots"):
        granted(evict(kept_small, row["revision"]))
    granted(kept_small.call("POST", "/v1/collect"))
    assert (blobs_on_disk(kept_small), names_in(kept_small, "ingest")) == ({}, [])


class Models:
    """Sources of SIZE bytes each, by a letter."""

    def __init__(self, daemon: Daemon, put: Put, prefix: str) -> None:
        self.daemon, self.put, self.prefix = daemon, put, prefix
        self.sources: dict[str, str] = {}

    def source(self, name: str, size: int = SIZE) -> str:
        if name not in self.sources:
            self.sources[name] = self.put({"a.safetensors": objects.noise((self.prefix, name), size)}, f"-{name}")
        return self.sources[name]

    def acquire(self, name: str) -> Any:
        return granted(self.daemon.acquire(self.source(name)))

    def use(self, names: Iterable[str]) -> None:
        """Acquired and released, in this order."""
        for name in names:
            self.release(self.acquire(name))

    def release(self, lease: Any) -> None:
        assert self.daemon.call("DELETE", f"/v1/leases/{lease['id']}").status == 204

    def held(self) -> str:
        """The letters of the models on the shelf."""
        sources = {row["source"] for row in rows(self.daemon, "SELECT source FROM v_refs")}
        return "".join(sorted(name for name, source in self.sources.items() if source in sources))


@pytest.fixture
def models(small: Daemon, put: Put, prefix: str) -> Models:
    return Models(small, put, prefix)


def pin(daemon: Daemon, target: str) -> Any:
    return granted(daemon.call("PUT", f"/v1/pins/{quote(target, safe='')}"))


def evict(daemon: Daemon, target: str) -> Any:
    return daemon.call("DELETE", f"/v1/snapshots/{quote(target, safe='')}")


# ---- making room


def test_the_one_unused_for_longest_goes_first(small: Daemon, models: Models) -> None:
    models.use("abc")
    models.use("a")  # a hit is a use
    models.use("d")
    assert models.held() == "acd"
    assert sum(blobs_on_disk(small).values()) == 3 * SIZE
    assert len(names_in(small, "snapshots")) == len(names_in(small, "manifests")) == len(names_in(small, "refs")) == 3
    assert rows(small, "SELECT bytes, reason FROM v_evictions ORDER BY id DESC LIMIT 1") == [{"bytes": SIZE, "reason": "room"}]
    assert_index_and_disk_agree(small)


def test_what_is_leased_stays_however_old(small: Daemon, models: Models) -> None:
    old = models.acquire("a")
    models.use("bc")
    models.use("de")
    assert "a" in models.held()
    assert tree_of(small, old)["a.safetensors"]


def test_what_is_pinned_stays_however_old(small: Daemon, models: Models) -> None:
    models.use("a")
    pin(small, models.source("a"))
    models.use("bcde")
    assert "a" in models.held()


def test_a_full_shelf_refuses_and_names_who_holds_what(small: Daemon, models: Models) -> None:
    for name in "abc":
        models.acquire(name)
    problem = refused(small.acquire(models.source("d"), timeout_s=0.3), "insufficient_space")
    assert problem["retryable"]
    holders = problem["details"]["holders"]
    assert {holder["sources"] for holder in holders} == {models.source(name) for name in "abc"}
    assert all((holder["bytes"], holder["leases"], holder["pinned"]) == (SIZE, 1, 0) for holder in holders)
    assert problem["details"]["lacking_bytes"] == SIZE - 1_000
    assert all(models.source(name) in problem["detail"] for name in "abc")
    assert models.held() == "abc"
    assert value(small, "SELECT count(*) FROM v_leases") == 3


def test_a_refusal_costs_the_origin_no_byte_and_evicts_nothing(small: Daemon, models: Models, wire: Recorder) -> None:
    models.use("a")
    for name in "bc":
        models.acquire(name)
    source = models.source("big", 2 * SIZE)
    refused(small.acquire(source, timeout_s=0.3), "insufficient_space")
    assert wire.bytes_for(source.partition(f"{BUCKET}/")[2]) == 0
    assert models.held() == "abc"


def test_room_is_there_again_when_a_lease_is_released(small: Daemon, models: Models) -> None:
    leases = [models.acquire(name) for name in "abc"]
    refused(small.acquire(models.source("d"), timeout_s=0.3), "insufficient_space")
    models.release(leases[1])
    models.acquire("d")
    assert models.held() == "acd"


@contextlib.contextmanager
def queueing(daemon: Daemon, source: str) -> Iterator[Iterator[Any]]:
    """What is told from then on to somebody who has been told to wait for room."""
    with contextlib.closing(UnixConnection(daemon.socket, 60)) as connection:
        connection.request("POST", "/v1/leases", json.dumps({"source": source}), {"Accept": NDJSON})
        told = map(json.loads, connection.getresponse())
        assert next(one for one in told if one["event"] != "progress" or one["phase"] == "queue")["event"] == "progress"
        yield told


def test_who_needs_room_waits_until_a_lease_ends(small: Daemon, models: Models) -> None:
    leases = [models.acquire(name) for name in "abc"]
    with queueing(small, models.source("d")) as told:
        assert value(small, "SELECT count(*) FROM v_leases") == 3  # who waits holds nothing
        models.release(leases[1])
        *_, last = told
    assert last["event"] == "ready"
    assert "queue" in last["lease"]["phases"]
    assert models.held() == "acd"


def test_who_waits_for_room_asks_the_origin_once(small: Daemon, models: Models, wire: Recorder) -> None:
    leases = [models.acquire(name) for name in "abc"]
    source = models.source("big", 3 * SIZE)
    key = source.partition(f"{BUCKET}/")[2]
    with queueing(small, source) as told:
        asked = wire.count(prefix=key)
        for lease in leases:
            assert (wire.bytes_for(key), wire.count(prefix=key)) == (0, asked)
            models.release(lease)
        *_, last = told
    assert last["event"] == "ready", last
    assert models.held() == "big"


def test_two_who_hold_one_model_each_and_want_another_s_room_do_not_wait_for_each_other(small: Daemon, models: Models) -> None:
    """Each has a lease that the other's room needs; nobody holds anything while he waits for all of his own."""
    models.use("ab")
    third = models.acquire("c")
    wanted = [[models.source("a"), models.source("x")], [models.source("b"), models.source("y")]]

    def both(sources: list[str]) -> None:
        for lease in granted(small.call("POST", "/v1/leases", {"sources": sources}, timeout_s=60))["leases"]:
            models.release(lease)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(both, wanted))
    assert "c" in models.held()
    models.release(third)


def test_what_is_pinned_is_not_waited_for(small: Daemon, models: Models) -> None:
    models.use("ab")
    for name in "ab":
        pin(small, models.source(name))
    models.acquire("c")
    source = models.source("big", 2 * SIZE)
    refused(small.acquire(source), "insufficient_space")  # at once, though it may wait for a minute


def test_nobody_waits_for_what_he_holds_himself(small: Daemon, models: Models) -> None:
    body = {"client": "0123456789abcdef"}
    for name in "abc":
        granted(small.acquire(models.source(name), **body))
    refused(small.acquire(models.source("d"), **body), "insufficient_space")  # at once
    with queueing(small, models.source("d")):
        pass  # anybody else does


def test_who_gives_up_waiting_for_room_leaves_nothing(small: Daemon, models: Models) -> None:
    for name in "abc":
        models.acquire(name)
    with queueing(small, models.source("d")):
        pass  # and the connection is closed
    wait_until(lambda: value(small, "SELECT error FROM v_requests ORDER BY id DESC LIMIT 1") == "client_gone")
    assert value(small, "SELECT count(*) FROM v_leases") == 3
    assert names_in(small, "ingest") == []


def test_what_exceeds_the_budget_never_fits(small: Daemon, models: Models) -> None:
    problem = refused(small.acquire(models.source("huge", 4 * SIZE)), "too_large")
    assert not problem["retryable"]


def test_several_sources_fit_together_or_not_at_all(small: Daemon, models: Models) -> None:
    models.acquire("a")
    wanted = [models.source(name) for name in "bcd"]
    refused(small.call("POST", "/v1/leases", {"sources": wanted, "timeout_s": 0.3}), "insufficient_space")
    assert value(small, "SELECT count(*) FROM v_leases") == 1
    leases = granted(small.call("POST", "/v1/leases", {"sources": wanted[:2]}))["leases"]
    assert len(leases) == 2


def test_two_who_each_want_the_last_room_do_not_both_get_it(small: Daemon, models: Models, wire: Recorder) -> None:
    models.acquire("a")
    sources = [models.source(name, 2 * SIZE) for name in "xy"]
    with ThreadPoolExecutor(2) as pool:
        replies = list(pool.map(lambda source: small.acquire(source, timeout_s=3), sources))
    assert sorted(reply.status for reply in replies) == [200, 507], [reply.body for reply in replies]
    assert sum(blobs_on_disk(small).values()) == 3 * SIZE


def test_a_download_under_way_counts_against_the_budget(small: Daemon, models: Models, wire: Recorder) -> None:
    key = models.source("a").partition(f"{BUCKET}/")[2]
    wire.stall(f"{key}/a.safetensors", after_bytes=10)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(small.acquire, models.source("a"))
        wire.wait_until(lambda it: it.bytes_for(key) >= 10)
        status = granted(small.call("GET", "/v1/status"))
        assert status["held_bytes"]["ingest"] == SIZE
        refused(small.acquire(models.source("big", 3 * SIZE), timeout_s=0.3), "insufficient_space")
        wire.resume()
        granted(first.result(30))


def test_an_interrupted_download_makes_way(small: Daemon, models: Models, wire: Recorder) -> None:
    key = models.source("a").partition(f"{BUCKET}/")[2]
    wire.stall(f"{key}/a.safetensors", after_bytes=10)
    refused(small.acquire(models.source("a"), timeout_s=0.3), "timeout")
    wire.resume()
    granted(small.acquire(models.source("z", 3 * SIZE)))
    assert models.held() == "z"
    assert names_in(small, "ingest") == []


# ---- evicting by hand


def test_evicting_frees_the_bytes_and_forgets_the_name(small: Daemon, models: Models) -> None:
    lease = models.acquire("a")
    models.release(lease)
    assert granted(evict(small, models.source("a"))) == {"revision": lease["revision"], "freed_bytes": SIZE}
    assert (blobs_on_disk(small), names_in(small, "snapshots"), names_in(small, "refs")) == ({}, [], [])
    assert value(small, "SELECT reason FROM v_evictions ORDER BY id DESC LIMIT 1") == "asked"
    refused(evict(small, models.source("a")), "not_found")
    models.acquire("a")  # and back it comes


def test_what_is_in_use_is_not_evicted(small: Daemon, models: Models) -> None:
    lease = models.acquire("a")
    problem = refused(evict(small, lease["revision"]), "in_use")
    assert problem["details"]["holders"][0]["leases"] == 1
    models.release(lease)
    pin(small, lease["revision"])
    problem = refused(evict(small, models.source("a")), "in_use")
    assert "pinned" in problem["detail"]
    assert tree_of(small, lease)


def test_evicting_leaves_what_another_snapshot_shares(small: Daemon, put: Put) -> None:
    shared, own = objects.noise("shared", 1_000), objects.noise("own", 2_000)
    one = put({"a.safetensors": shared, "b.safetensors": own}, "-one")
    other = put({"a.safetensors": shared}, "-other")
    for source in (one, other):
        lease = granted(small.acquire(source))
        small.call("DELETE", f"/v1/leases/{lease['id']}")
    assert granted(evict(small, one))["freed_bytes"] == 2_000
    assert set(blobs_on_disk(small)) == {Digest.of(shared)}
    assert tree_of(small, granted(small.acquire(other))) == {"a.safetensors": shared}


def test_evicting_what_is_being_looked_at_does_not_bring_it_back(small: Daemon, models: Models, wire: Recorder) -> None:
    models.use("a")
    key = models.source("a").partition(f"{BUCKET}/")[2]

    hits: Queue[Any] = Queue()

    def meanwhile(_: object) -> None:
        models.release(hits.get(timeout=30))
        granted(evict(small, models.source("a")))

    small.restart()  # one that has asked no origin yet looks after the first hit
    asked = wire.count(method="HEAD", prefix=key)
    wire.before(meanwhile, prefix=key, method="HEAD")
    hits.put(models.acquire("a"))
    wire.wait_until(lambda it: it.count(method="HEAD", prefix=key) > asked)
    wait_until(lambda: not rows(small, "SELECT * FROM v_refs WHERE source = ?", models.source("a")))
    models.use("bc")  # by now the look is over
    assert models.held() == "bc"


# ---- pins


def test_a_pin_on_a_name_follows_it_and_one_on_a_revision_does_not(
    make_daemon: MakeDaemon, seaweedfs: SeaweedFS, put: Put
) -> None:
    daemon = make_daemon(origins={"weed": seaweedfs.settings(BUCKET)}, revalidate_s=0.05)
    source = put({"a.safetensors": b"old" * 100})
    old = granted(daemon.acquire(source))["revision"]
    assert pin(daemon, source)["kind"] == "name"
    assert pin(daemon, old)["kind"] == "revision"
    put({"a.safetensors": b"new" * 100})
    new = objects.manifest_of({"a.safetensors": b"new" * 100}).revision
    wait_until(lambda: granted(daemon.acquire(source))["revision"] == new)
    assert {row["target"]: row["revision"] for row in rows(daemon, "SELECT target, revision FROM v_pins")} == {
        source: new, old: old,
    }  # fmt: skip


def test_a_pin_may_come_before_what_it_pins(small: Daemon, models: Models) -> None:
    assert pin(small, models.source("a"))["revision"] is None
    models.use("abcd")
    assert "a" in models.held()


def test_an_unpinned_one_may_go_again(small: Daemon, models: Models) -> None:
    lease = models.acquire("a")
    models.release(lease)
    pin(small, models.source("a"))
    assert [row["target"] for row in granted(small.call("GET", "/v1/pins"))["pins"]] == [models.source("a")]
    assert small.call("DELETE", f"/v1/pins/{quote(models.source('a'), safe='')}").status == 204
    refused(small.call("DELETE", f"/v1/pins/{quote(models.source('a'), safe='')}"), "not_found")
    granted(evict(small, lease["revision"]))


def test_what_cannot_be_pinned_is_refused(small: Daemon) -> None:
    refused(small.call("PUT", f"/v1/pins/{Digest.of(b'nothing')}"), "not_found")
    refused(small.call("PUT", "/v1/pins/no-such-name"), "not_found")
    refused(small.call("PUT", "/v1/pins/sha256:12"), "invalid_request")


# ---- collecting


def test_collecting_removes_what_no_snapshot_holds_and_a_dry_run_only_tells(small: Daemon, put: Put) -> None:
    wrong = put({"a.safetensors": objects.noise("waste", SIZE)})
    refused(small.acquire(f"{wrong}@{Digest.of(b'another')}"), "integrity_error")  # its bytes were fetched, for nothing
    kept = granted(small.acquire(put({"b.safetensors": b"kept" * 100}, "-kept")))
    waste = [Digest.of(objects.noise("waste", SIZE))]
    told = granted(small.call("POST", "/v1/collect", {"dry_run": True}))
    assert (told["dry_run"], told["blobs"], told["freed_bytes"]) == (True, waste, SIZE)
    assert waste[0] in blobs_on_disk(small)
    done = granted(small.call("POST", "/v1/collect", {"dry_run": False}))
    assert (done["dry_run"], done["blobs"], done["freed_bytes"]) == (False, waste, SIZE)
    assert waste[0] not in blobs_on_disk(small)
    assert tree_of(small, kept)
    assert granted(small.call("POST", "/v1/collect"))["freed_bytes"] == 0


def test_a_collect_that_makes_no_sense_removes_nothing(small: Daemon) -> None:
    for body in ({"dry_run": "yes"}, {"dryrun": True}, ["dry_run"], b"not json"):
        refused(small.call("POST", "/v1/collect", body), "invalid_request")


def metrics(daemon: Daemon) -> dict[str, float]:
    lines = (line.rsplit(" ", 1) for line in daemon.get_http("/metrics").body.splitlines())
    return {name: float(number) for name, number in lines if name.startswith("hotshelf_")}


def test_the_metrics_tell_what_is_held_and_what_was_done(small: Daemon, models: Models) -> None:
    before = metrics(small)
    models.acquire("a")
    models.acquire("a")
    pin(small, models.source("a"))
    told = metrics(small)
    assert told['hotshelf_store_bytes{state="ready"}'] == SIZE
    assert told["hotshelf_budget_bytes"] == 3 * SIZE + 1_000
    assert (told["hotshelf_leases"], told["hotshelf_pins"]) == (2, 1)

    def grown(name: str) -> float:
        return told[name] - before.get(name, 0)

    for outcome in ("hit", "miss"):
        assert grown(f'hotshelf_acquire_total{{outcome="{outcome}"}}') == 1
        assert grown(f'hotshelf_acquire_duration_seconds_count{{outcome="{outcome}"}}') == 1
    assert grown('hotshelf_origin_bytes_total{origin="weed"}') == SIZE
