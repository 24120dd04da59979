"""When the bucket changes: what is asked for later is new, and an operator decides otherwise by `refresh` and `rollback`."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from hotshelf import Client
from hotshelf_shared.wire import NDJSON
from tests import objects
from tests.daemon.conftest import MakeDaemon, Put
from tests.daemon.looking import granted, names_in, refused, rows, tree_of
from tests.daemon_process import Daemon, Reply, UnixConnection
from tests.objects import Digest
from tests.servers.recorder import Recorder
from tests.servers.seaweedfs import SeaweedFS
from tests.waiting import wait_until

OLD, NEW, NEWEST = (objects.model(name, unet=4_000, text_encoder=2_000, vae=2_000) for name in ("old", "new", "newest"))
INDEX = ["model_index.json"]
UNET = ["unet/*"]


def revision_of(tree: objects.Tree) -> str:
    return str(objects.manifest_of(tree).revision)


def part(tree: objects.Tree, folder: str) -> objects.Tree:
    return {path: data for path, data in tree.items() if path.startswith(folder)}


def refresh(daemon: Daemon, source: str, **more: Any) -> Reply:
    return daemon.call("POST", "/v1/refresh", {"source": source, **more})


def rollback(daemon: Daemon, source: str, **more: Any) -> Reply:
    return daemon.call("POST", "/v1/rollback", {"source": source, **more})


def acquired(daemon: Daemon, source: str, **more: Any) -> objects.Tree:
    """What a worker gets that asks now and lets go."""
    lease = granted(daemon.acquire(source, **more))
    tree = tree_of(daemon, lease)
    assert daemon.call("DELETE", f"/v1/leases/{lease['id']}").status == 204
    return tree


def evict(daemon: Daemon, revision: str) -> None:
    granted(daemon.call("DELETE", f"/v1/snapshots/{revision}"))


def spoil(daemon: Daemon, digest: str) -> None:
    path = daemon.store / "blobs" / "sha256" / digest.removeprefix("sha256:")[:2] / digest.removeprefix("sha256:")
    path.chmod(0o640)
    path.write_bytes(b"x" * path.stat().st_size)
    assert granted(daemon.call("POST", "/v1/verify"))["wrong"] == [digest]


def events(daemon: Daemon, source: str) -> list[str]:
    return [row["kind"] for row in rows(daemon, "SELECT kind FROM v_events WHERE subject = ? ORDER BY id", source)]


@pytest.fixture
def mine(make_daemon: MakeDaemon, seaweedfs: SeaweedFS, recorder: Recorder, bucket: str) -> Daemon:
    """Looks at nothing by itself."""
    origins = {"weed": seaweedfs.settings(bucket, endpoint_url=recorder.endpoint_url)}
    return make_daemon(origins=origins, revalidate_s=3_600, fetch={"attempts": 1})


@pytest.fixture
def changed(mine: Daemon, put: Put) -> str:
    """A plain folder whose old files, and since a refresh its new ones, are held."""
    source = put(OLD)
    assert acquired(mine, source) == OLD
    put(NEW)
    assert granted(refresh(mine, source))["changed"]
    return source


@pytest.fixture
def pushed(mine: Daemon, put: Put) -> str:
    """The same, pushed."""
    source = put(objects.published(OLD))
    assert acquired(mine, source) == OLD
    put(objects.published(NEW))
    assert granted(refresh(mine, source))["changed"]
    return source


@pytest.fixture(params=["changed", "pushed"])
def either(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(request.param))


# ---- without anybody doing anything


def test_who_asks_later_than_revalidate_s_after_a_change_gets_what_is_new_though_nobody_asked_meanwhile(
    make_daemon: MakeDaemon, seaweedfs: SeaweedFS, put: Put, bucket: str
) -> None:
    daemon = make_daemon(origins={"weed": seaweedfs.settings(bucket)}, revalidate_s=0.2)
    source = put(OLD)
    assert acquired(daemon, source) == OLD
    put(NEW)
    wait_until(lambda: rows(daemon, "SELECT revision FROM v_refs") == [{"revision": revision_of(NEW)}])
    assert acquired(daemon, source) == NEW
    assert events(daemon, source) == ["flipped"]


def test_what_was_damaged_and_has_changed_meanwhile_is_a_flip_too(mine: Daemon, put: Put) -> None:
    source = put(OLD)
    assert acquired(mine, source) == OLD
    put(NEW)
    spoil(mine, objects.manifest_of(OLD)["unet/config.json"].digest)
    assert acquired(mine, source) == NEW
    assert events(mine, source) == ["flipped"]


def test_what_is_preloaded_is_kept_up_to_date_before_anybody_asks(
    make_daemon: MakeDaemon, seaweedfs: SeaweedFS, put: Put, bucket: str
) -> None:
    source = put(OLD)
    models = {"sdxl": {"source": source, "preload": True}}
    daemon = make_daemon(origins={"weed": seaweedfs.settings(bucket)}, revalidate_s=0.2, models=models)
    wait_until(lambda: rows(daemon, "SELECT revision FROM v_refs") == [{"revision": revision_of(OLD)}])
    put(NEW)
    wait_until(lambda: rows(daemon, "SELECT revision FROM v_refs") == [{"revision": revision_of(NEW)}])


# ---- refresh


def test_a_refresh_takes_what_the_origin_has_now(mine: Daemon, put: Put) -> None:
    source = put(OLD)
    held = granted(mine.acquire(source))
    put(NEW)
    told = granted(refresh(mine, source))
    assert told == {
        "source": source, "revision": revision_of(NEW), "previous": revision_of(OLD), "changed": True, "unfrozen": False,
        "pinned": False,
    }  # fmt: skip
    assert acquired(mine, source) == NEW
    assert tree_of(mine, held) == OLD  # whoever holds the old one keeps it
    assert events(mine, source) == ["flipped"]
    again = granted(refresh(mine, source))
    assert (again["changed"], again["revision"]) == (False, revision_of(NEW))


def test_a_refresh_of_what_is_not_held_fetches_it(mine: Daemon, put: Put, recorder: Recorder) -> None:
    source = put(OLD)
    told = granted(refresh(mine, source))
    assert (told["revision"], told["previous"], told["changed"]) == (revision_of(OLD), None, True)
    with recorder.down():
        assert acquired(mine, source) == OLD


def test_a_refresh_takes_every_selection_that_is_held_and_no_more(mine: Daemon, put: Put, recorder: Recorder) -> None:
    source = put(OLD)
    for patterns in (INDEX, UNET):
        acquired(mine, source, allow_patterns=patterns)
    put(NEW)
    recorder.reset()
    assert granted(refresh(mine, source))["changed"]
    assert [each.key for each in recorder.matching(method="GET") if "text_encoder" in each.key] == []
    with recorder.down():
        assert acquired(mine, source, allow_patterns=UNET) == part(NEW, "unet/")


def test_a_selection_of_which_nothing_is_left_does_not_hold_up_the_others(
    mine: Daemon, put: Put, seaweedfs: SeaweedFS, bucket: str, prefix: str
) -> None:
    source = put({**OLD, "extra/notes.json": b"{}"})
    for patterns in (UNET, ["extra/*"]):
        acquired(mine, source, allow_patterns=patterns)
    put(NEW)
    with seaweedfs.client() as client:
        client.delete_object(Bucket=bucket, Key=f"{prefix}/extra/notes.json")
        assert granted(refresh(mine, source))["changed"]
        assert acquired(mine, source, allow_patterns=UNET) == part(NEW, "unet/")
        assert acquired(mine, source, allow_patterns=["extra/*"]) == {"extra/notes.json": b"{}"}
        for key in NEW:
            client.delete_object(Bucket=bucket, Key=f"{prefix}/{key}")
    refused(refresh(mine, source), "not_found")
    assert acquired(mine, source, allow_patterns=UNET) == part(NEW, "unet/")


def test_two_refreshes_at_once_ask_the_origin_once(mine: Daemon, put: Put, recorder: Recorder, prefix: str) -> None:
    source = put(OLD)
    acquired(mine, source)
    put(NEW)
    recorder.reset()
    granted(refresh(mine, source))
    alone = recorder.count(prefix=prefix)
    put(NEWEST)
    recorder.reset()
    recorder.stall(f"{prefix}/unet/config.json")
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(refresh, mine, source) for _ in range(2)]
        recorder.wait_until(lambda seen: any(each.key.endswith("unet/config.json") for each in seen.requests))
        wait_until(lambda: len(rows(mine, "SELECT * FROM v_transfers")) > 0)
        recorder.heal()
        told = [granted(each.result()) for each in both]
    assert told[0] == told[1]
    assert told[0]["revision"] == revision_of(NEWEST)
    assert recorder.count(prefix=prefix) <= alone


def test_a_refresh_shows_its_progress(mine: Daemon, put: Put) -> None:
    source = put({"a.safetensors": objects.noise("progress", 3_000_000)})
    with contextlib.closing(UnixConnection(mine.socket)) as connection:
        connection.request("POST", "/v1/refresh", json.dumps({"source": source}), {"Accept": NDJSON})
        lines = [json.loads(line) for line in connection.getresponse()]
    assert lines[-1]["event"] == "ready"
    assert lines[-1]["refreshed"]["source"] == source
    assert {line["event"] for line in lines[:-1]} <= {"progress"}
    with contextlib.closing(UnixConnection(mine.socket)) as connection:
        connection.request("POST", "/v1/refresh", json.dumps({"source": f"{source}-none"}), {"Accept": NDJSON})
        seen = [json.loads(line) for line in connection.getresponse()]
    assert seen[-1]["problem"]["code"] == "not_found"


def test_a_refresh_while_the_origin_is_off_changes_nothing(mine: Daemon, either: str, recorder: Recorder) -> None:
    with recorder.down():
        refused(refresh(mine, either), "origin_unavailable")
        assert acquired(mine, either) == NEW
    assert granted(rollback(mine, either))["revision"] == revision_of(OLD)
    with recorder.down():
        refused(refresh(mine, either), "origin_unavailable")
        assert acquired(mine, either) == OLD
    assert rows(mine, "SELECT rolled_back_at IS NOT NULL AS frozen FROM v_refs") == [{"frozen": 1}]
    told = granted(refresh(mine, either))
    assert (told["revision"], told["previous"], told["changed"], told["unfrozen"]) == (
        revision_of(NEW), revision_of(OLD), True, True,
    )  # fmt: skip
    assert acquired(mine, either) == NEW


@pytest.mark.parametrize("laid", [dict, objects.published])
def test_a_refresh_that_fails_half_way_leaves_a_rollback_as_it_was(
    mine: Daemon, put: Put, recorder: Recorder, prefix: str, laid: Callable[[objects.Tree], objects.Tree]
) -> None:
    source = put(laid(OLD))
    selections: list[tuple[dict[str, Any], str]] = [({}, ""), ({"allow_patterns": UNET}, "unet/")]

    def holds(tree: objects.Tree) -> bool:
        return all(acquired(mine, source, **patterns) == part(tree, folder) for patterns, folder in selections)

    assert holds(OLD)
    put(laid(NEW))
    granted(refresh(mine, source))
    granted(rollback(mine, source))
    put(laid(NEWEST))
    recorder.cut(prefix, after_bytes=2_000, times=None)
    refused(refresh(mine, source, timeout_s=20), "origin_unavailable")
    assert holds(OLD)
    recorder.heal()
    assert granted(refresh(mine, source))["unfrozen"]
    assert holds(NEWEST)


def test_a_refresh_that_has_no_room_is_refused_and_the_old_one_is_served(
    make_daemon: MakeDaemon, seaweedfs: SeaweedFS, put: Put, bucket: str
) -> None:
    daemon = make_daemon(origins={"weed": seaweedfs.settings(bucket)}, revalidate_s=3_600, budget=60_000)
    source = put({"a.safetensors": objects.noise(1, 40_000)})
    held = granted(daemon.acquire(source))
    put({"a.safetensors": objects.noise(2, 40_000)})
    refused(refresh(daemon, source), "insufficient_space")
    assert acquired(daemon, source) == {"a.safetensors": objects.noise(1, 40_000)}
    daemon.call("DELETE", f"/v1/leases/{held['id']}")
    assert granted(refresh(daemon, source))["changed"]  # somebody waits: what nobody holds makes way


def test_a_frozen_name_flips_when_it_is_refreshed_and_not_before(
    make_daemon: MakeDaemon, seaweedfs: SeaweedFS, put: Put, bucket: str
) -> None:
    source = put(OLD)
    models = {"sdxl": {"source": source, "freeze": True}}
    daemon = make_daemon(origins={"weed": seaweedfs.settings(bucket)}, revalidate_s=0.05, models=models)
    assert acquired(daemon, "sdxl") == OLD
    put(NEW)
    assert acquired(daemon, "sdxl") == OLD
    assert granted(refresh(daemon, "sdxl"))["changed"]
    assert acquired(daemon, "sdxl") == NEW
    (shown,) = [one for one in granted(daemon.call("GET", "/v1/snapshots"))["snapshots"] if one["sources"]]
    assert shown["freshness"] == "frozen"


def test_a_frozen_name_that_was_damaged_is_healed_with_what_it_was(
    make_daemon: MakeDaemon, seaweedfs: SeaweedFS, bucket: str, put: Put
) -> None:
    old, new = objects.model("frozen"), objects.model("thawed")
    source = put(objects.published(old))
    origins, models = {"weed": seaweedfs.settings(bucket)}, {"sdxl": {"source": source, "freeze": True}}
    daemon = make_daemon("frozen", origins=origins, models=models)
    assert acquired(daemon, "sdxl") == old
    put(objects.published(new))
    spoil(daemon, objects.manifest_of(old)["unet/config.json"].digest)
    assert acquired(daemon, "sdxl") == old
    granted(refresh(daemon, "sdxl"))
    assert acquired(daemon, "sdxl") == new


# ---- rollback


def test_a_rollback_returns_to_what_was_before_until_a_refresh(mine: Daemon, either: str, recorder: Recorder) -> None:
    held = granted(mine.acquire(either))
    with recorder.down():
        told = granted(rollback(mine, either))
        assert (told["revision"], told["previous"]) == (revision_of(OLD), revision_of(NEW))
        assert acquired(mine, either) == OLD
    assert tree_of(mine, held) == NEW
    assert events(mine, either)[-1] == "rolled_back"
    assert granted(refresh(mine, either))["unfrozen"]
    assert acquired(mine, either) == NEW
    assert events(mine, either)[-2:] == ["flipped", "unfrozen"]
    assert [name for name in names_in(mine, "refs") if "rollback" in name] == []


def test_a_rollback_stays_whatever_the_origin_does(
    make_daemon: MakeDaemon, seaweedfs: SeaweedFS, recorder: Recorder, put: Put, bucket: str, prefix: str
) -> None:
    """Background looks, preloads at start and new configurations flip nothing, over restarts."""
    source = put(OLD, "-held")
    origins = {"weed": seaweedfs.settings(bucket, endpoint_url=recorder.endpoint_url)}
    daemon = make_daemon(origins=origins, revalidate_s=0.05, models={"sdxl": {"source": source, "preload": True}})
    acquired(daemon, "sdxl")
    put(NEW, "-held")
    wait_until(lambda: acquired(daemon, "sdxl") == NEW)
    granted(rollback(daemon, "sdxl"))

    def still_so() -> None:
        before = recorder.count(prefix=f"{prefix}-held")
        live = put(OLD, "-live")
        acquired(daemon, live)
        put(NEW, "-live")
        wait_until(lambda: acquired(daemon, live) == NEW)  # by now a look would have happened
        assert acquired(daemon, "sdxl") == acquired(daemon, source) == OLD
        assert recorder.count(prefix=f"{prefix}-held") == before

    still_so()
    put(NEWEST, "-held")
    daemon.kill9()
    daemon.start()
    still_so()
    granted(refresh(daemon, "sdxl"))
    assert acquired(daemon, "sdxl") == NEWEST


def test_a_rollback_outlives_a_restart_and_a_lost_index(mine: Daemon, either: str, recorder: Recorder) -> None:
    granted(rollback(mine, either))
    with recorder.down():
        mine.restart()
        assert acquired(mine, either) == OLD
        assert mine.terminate() == 0
        shutil.rmtree(mine.store / "index")
        mine.start()
        assert acquired(mine, either) == OLD
        assert rows(mine, "SELECT previous, rolled_back_at IS NOT NULL AS frozen FROM v_refs") == [
            {"previous": revision_of(NEW), "frozen": 1}
        ]
        assert granted(rollback(mine, either))["revision"] == revision_of(NEW)  # what it was is remembered, too
    assert granted(refresh(mine, either))["unfrozen"]
    assert mine.terminate() == 0
    shutil.rmtree(mine.store / "index")
    mine.start()
    assert rows(mine, "SELECT rolled_back_at IS NOT NULL AS frozen FROM v_refs") == [{"frozen": 0}]


def test_a_second_rollback_goes_forth_again_and_stays_there(mine: Daemon, either: str, recorder: Recorder) -> None:
    with recorder.down():
        for tree in (OLD, NEW, OLD):
            assert granted(rollback(mine, either))["revision"] == revision_of(tree)
            assert acquired(mine, either) == tree


def test_a_pushed_revision_that_was_evicted_after_a_rollback_is_fetched_again_and_no_other(
    mine: Daemon, pushed: str, put: Put
) -> None:
    granted(rollback(mine, pushed))
    put(objects.published(NEWEST))
    evict(mine, revision_of(OLD))
    assert acquired(mine, pushed) == OLD
    assert mine.terminate() == 0
    shutil.rmtree(mine.store / "index")
    mine.start()
    evict(mine, revision_of(OLD))
    assert acquired(mine, pushed) == OLD
    assert granted(refresh(mine, pushed))["revision"] == revision_of(NEWEST)


def test_a_revision_that_was_evicted_after_a_rollback_and_never_pushed_is_refused_and_no_other_served(
    mine: Daemon, changed: str, put: Put
) -> None:
    granted(rollback(mine, changed))
    evict(mine, revision_of(OLD))
    for _ in range(2):
        problem = refused(mine.acquire(changed), "not_found")
        assert revision_of(OLD) in problem["detail"]
        assert f"hotshelf refresh {changed}" in problem["hint"]
        mine.restart()
    assert granted(refresh(mine, changed))["revision"] == revision_of(NEW)
    assert acquired(mine, changed) == NEW


def test_a_pushed_revision_that_the_bucket_has_lost_is_refused_and_no_other_served(
    mine: Daemon, pushed: str, seaweedfs: SeaweedFS, bucket: str, prefix: str
) -> None:
    granted(rollback(mine, pushed))
    evict(mine, revision_of(OLD))
    with seaweedfs.client() as client:
        client.delete_object(Bucket=bucket, Key=f"{prefix}/manifests/{objects.manifest_of(OLD).revision.hex}.json")
    problem = refused(mine.acquire(pushed), "not_found")
    assert f"hotshelf refresh {pushed}" in problem["hint"]


def test_a_file_of_a_rolled_back_folder_that_was_lost_is_fetched_again(mine: Daemon, either: str, put: Put) -> None:
    """Nothing but what the ref was taken from will do; where that is still there, it does."""
    granted(rollback(mine, either))
    put(OLD)  # a plain folder is as it was: what was pushed is found by its name in any case
    lost = Digest.of(OLD["unet/config.json"])
    (mine.store / "blobs" / "sha256" / lost.hex[:2] / lost.hex).unlink()
    mine.restart()
    assert acquired(mine, either) == OLD


def test_selections_of_a_source_go_back_together(mine: Daemon, put: Put, recorder: Recorder) -> None:
    """A loader asks for the index first and for what it names after that: both are of one time."""
    source = put(OLD)
    for patterns in (INDEX, UNET, ["vae/*"]):
        acquired(mine, source, allow_patterns=patterns)
    assert acquired(mine, source) == OLD
    put(NEW)
    granted(refresh(mine, source))
    with recorder.down():
        told = granted(rollback(mine, source))
        ways = {tuple(ref["allow_patterns"] or ()): ref["way"] for ref in told["refs"]}
        assert ways == {(): "turned", tuple(UNET): "turned", tuple(INDEX): "kept", ("vae/*",): "kept"}
        assert acquired(mine, source, allow_patterns=UNET) == part(OLD, "unet/")
        assert acquired(mine, source, allow_patterns=["vae/*"]) == part(OLD, "vae/")
        assert acquired(mine, source) == OLD


def test_a_selection_that_was_first_taken_after_the_change_goes_back_when_it_was_pushed(mine: Daemon, pushed: str) -> None:
    assert acquired(mine, pushed, allow_patterns=UNET) == part(NEW, "unet/")
    told = granted(rollback(mine, pushed))
    assert {ref["way"] for ref in told["refs"]} == {"turned", "forgotten"}
    assert acquired(mine, pushed, allow_patterns=UNET) == part(OLD, "unet/")
    assert acquired(mine, pushed, allow_patterns=["text_encoder/*"]) == part(OLD, "text_encoder/")  # and so does any new one
    granted(refresh(mine, pushed))
    assert acquired(mine, pushed, allow_patterns=UNET) == part(NEW, "unet/")


def test_a_selection_of_which_nothing_is_held_from_then_is_refused_and_not_mixed_in(mine: Daemon, changed: str) -> None:
    assert acquired(mine, changed, allow_patterns=UNET) == part(NEW, "unet/")
    granted(rollback(mine, changed))
    refused(mine.acquire(changed, allow_patterns=UNET), "not_found")
    assert acquired(mine, changed) == OLD


def test_a_pin_on_a_name_follows_a_rollback(mine: Daemon, either: str) -> None:
    granted(mine.call("PUT", f"/v1/pins/{either.replace('/', '%2F')}"))
    granted(rollback(mine, either))
    assert rows(mine, "SELECT revision FROM v_pins") == [{"revision": revision_of(OLD)}]
    assert mine.call("DELETE", f"/v1/snapshots/{revision_of(OLD)}").body["code"] == "in_use"
    evict(mine, revision_of(NEW))


def test_what_was_gone_back_to_is_not_the_first_to_make_way(
    make_daemon: MakeDaemon, seaweedfs: SeaweedFS, put: Put, bucket: str
) -> None:
    daemon = make_daemon(origins={"weed": seaweedfs.settings(bucket)}, revalidate_s=3_600, budget=100_000)
    first, second, third = ({"a.safetensors": objects.noise(("way", number), 40_000)} for number in range(3))
    source = put(first)
    acquired(daemon, source)
    put(second)
    granted(refresh(daemon, source))
    acquired(daemon, source)
    granted(rollback(daemon, source))
    acquired(daemon, put(third, "-other"))
    held = {row["revision"] for row in rows(daemon, "SELECT revision FROM v_snapshots")}
    assert held == {revision_of(first), revision_of(third)}


def test_a_dry_run_of_a_rollback_tells_and_does_nothing(mine: Daemon, either: str) -> None:
    told = granted(rollback(mine, either, dry_run=True))
    assert told["dry_run"]
    assert acquired(mine, either) == NEW
    assert "rolled_back" not in events(mine, either)
    assert granted(rollback(mine, either)) == {**told, "dry_run": False}


def test_there_is_nothing_to_go_back_to_before_a_change_or_after_its_eviction(mine: Daemon, put: Put, changed: str) -> None:
    evict(mine, revision_of(OLD))
    problem = refused(rollback(mine, changed), "not_found")
    assert f"{changed}@{revision_of(OLD)}" in problem["hint"]
    single = put({"style.safetensors": objects.lora()}, "-lora")
    acquired(mine, single)
    refused(rollback(mine, single), "not_found")
    refused(rollback(mine, f"{single}-none"), "not_found")


def test_one_object_goes_back_too(mine: Daemon, put: Put) -> None:
    source = f"{put({'style.safetensors': objects.lora(1)})}/style.safetensors"
    assert acquired(mine, source) == {"style.safetensors": objects.lora(1)}
    put({"style.safetensors": objects.lora(2)})
    granted(refresh(mine, source))
    granted(rollback(mine, source))
    lease = granted(mine.acquire(source))
    assert (lease["kind"], tree_of(mine, lease)) == ("file", {"style.safetensors": objects.lora(1)})


def test_what_never_changes_is_not_refreshed(mine: Daemon, either: str, recorder: Recorder) -> None:
    pinned = f"{either}@{revision_of(NEW)}"
    with recorder.down():
        told = granted(refresh(mine, pinned))
    assert (told["pinned"], told["changed"], told["revision"]) == (True, False, revision_of(NEW))
    assert either in refused(rollback(mine, pinned), "invalid_request")["hint"]


@pytest.mark.parametrize("verb", [refresh, rollback])
@pytest.mark.parametrize("source", [f"pipeline:{'0' * 64}", "bundle:cpu/9f2c", revision_of(OLD), "", "s3://b/../x", 7])
def test_what_has_no_origin_is_refused_with_a_sentence(shared: Daemon, verb: Any, source: Any) -> None:
    problem = refused(verb(shared, source), "invalid_request")
    assert len(problem["detail"].split()) > 3


@pytest.mark.parametrize(
    ("call", "body"),
    [
        ("refresh", {"source": "s3://b/x", "sources": []}),
        ("refresh", {"source": "s3://b/x", "timeout_s": -1}),
        ("rollback", {"source": "s3://b/x", "dry_run": "yes"}),
        ("rollback", ["s3://b/x"]),
    ],
)
def test_a_body_that_makes_no_sense_is_refused(shared: Daemon, call: str, body: Any) -> None:
    refused(shared.call("POST", f"/v1/{call}", body), "invalid_request")


# ---- looking


def test_ls_tells_age_and_freshness(
    make_daemon: MakeDaemon, seaweedfs: SeaweedFS, put: Put, bucket: str, recorder: Recorder
) -> None:
    source, live = put(OLD), put(objects.published(OLD), "-pushed")
    daemon = make_daemon(origins={"weed": seaweedfs.settings(bucket)}, revalidate_s=3_600)
    client = Client(socket=daemon.socket, store=daemon.store)

    def told() -> dict[str, Any]:
        return {one["revision"]: one["freshness"] for one in client.snapshots()}

    acquired(daemon, source)
    assert told() == {revision_of(OLD): "fresh"}
    put(NEW)
    granted(refresh(daemon, source))
    assert told() == {revision_of(OLD): "previous", revision_of(NEW): "fresh"}
    granted(rollback(daemon, source))
    assert told() == {revision_of(OLD): "rolled_back", revision_of(NEW): "previous"}
    acquired(daemon, f"{live}@{revision_of(OLD)}")
    (old,) = [one for one in client.snapshots() if one["revision"] == revision_of(OLD)]
    assert {ref["source"]: ref["freshness"] for ref in old["refs"]} == {
        source: "rolled_back", f"{live}@{revision_of(OLD)}": "immutable",
    }  # fmt: skip
    assert 0 <= old["age_s"] < 60
    assert 0 <= old["checked_s"] < 60
    granted(refresh(daemon, source))
    daemon.restart(revalidate_s=0.001)
    assert told()[revision_of(NEW)] == "stale"


def test_a_record_of_a_rollback_that_is_none_freezes_nothing(mine: Daemon, changed: str) -> None:
    assert mine.terminate() == 0
    (wish,) = [name.removesuffix(".json") for name in names_in(mine, "refs")]
    cut_off = {"source": changed, "wish": wish, "revision": revision_of(OLD), "release": None, "at": 1.0, "uid": 0}
    texts = ["", "[", "{}", '{"source": 1}', "[" * 100_000, json.dumps(cut_off)]
    for number, text in enumerate(texts):
        (mine.store / "refs" / f"{number:064x}.rollback.json").write_text(text)
    (mine.store / "refs" / f"{Digest.of(changed.encode()).hex}.rollback.json").write_text(json.dumps(cut_off))
    mine.start()
    assert acquired(mine, changed) == NEW
    assert [name for name in names_in(mine, "refs") if "rollback" in name] == []
