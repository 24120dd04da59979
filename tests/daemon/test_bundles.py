"""A compile cache is bound to its environment and graph and leased by them: the right bytes, to whom it concerns, signed."""

from __future__ import annotations

import os
import pathlib
import shutil
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote

import pytest

from hotshelf_shared.bundle import ARCHIVE, Bundle
from tests import objects
from tests.daemon.bundling import AT, BUNDLE, NAME, bind, document_of, folder_of, forge, share
from tests.daemon.conftest import MakeDaemon
from tests.daemon.looking import assert_index_and_disk_agree, blobs_on_disk, granted, index_of, names_in, refused, rows, value
from tests.daemon.workers import GROUP, OTHER, WORKER, Worker
from tests.daemon_process import Daemon
from tests.faults.invariants import Promise, wrongs_after_restart
from tests.objects import Digest
from tests.waiting import wait_until

DATA = objects.noise("bundle", 70_001)
OTHER_DATA = objects.noise("other", 50_001)
KEY = ".bundles.key"


@pytest.fixture
def mine(make_daemon: MakeDaemon) -> Daemon:
    """A daemon without origins, that may be killed."""
    return make_daemon()


@pytest.fixture
def bound(mine: Daemon) -> Daemon:
    share(Worker(mine), DATA)
    return mine


@pytest.fixture
def team(make_daemon: MakeDaemon) -> Daemon:
    """A daemon that workers of other uids may use, none of them trusted but root."""
    daemon = make_daemon(socket_group=str(GROUP), trusted_uids=[0])
    os.chmod(daemon.socket.parent, 0o755)
    return daemon


def events(daemon: Daemon) -> list[str]:
    return [row["kind"] for row in rows(daemon, "SELECT kind FROM v_events ORDER BY id")]


def evict(daemon: Daemon, target: str = BUNDLE) -> Any:
    return daemon.call("DELETE", f"/v1/snapshots/{quote(target, safe='')}")


def lease_of(daemon: Daemon) -> Any:
    """A lease on the bundle, whose file is what it says."""
    lease = granted(Worker(daemon).lease(BUNDLE))
    data = (daemon.store / lease["path"] / ARCHIVE).read_bytes()
    assert lease["files"] == [{"path": ARCHIVE, "digest": Digest.of(data), "size": len(data)}]
    return lease


def assert_not_served(daemon: Daemon) -> None:
    before = rows(daemon, "SELECT id FROM v_leases")
    refused(Worker(daemon).lease(BUNDLE), "not_found")
    refused(Worker(daemon).ask("GET", AT), "not_found")
    assert rows(daemon, "SELECT id FROM v_leases") == before
    assert '"defect"' not in daemon.log_text


# ---- bind, show, lease


def test_what_one_worker_compiled_the_next_one_leases_at_once(mine: Daemon) -> None:
    told = share(Worker(mine), DATA)
    lease = lease_of(mine)
    assert (lease["kind"], lease["source"], lease["revision"]) == ("bundle", BUNDLE, told["revision"])
    assert lease["path"] == told["path"]
    assert lease["path"].startswith(f"bundles/{NAME}/")
    assert (mine.store / lease["path"] / ARCHIVE).read_bytes() == DATA
    assert value(mine, "SELECT outcome FROM v_requests") == "hit"
    assert told == granted(Worker(mine).ask("GET", AT))
    assert {name: told[name] for name in ("environment_key", "graph_key", "digest", "size", "uid")} == {
        "environment_key": NAME.partition("/")[0],
        "graph_key": NAME.partition("/")[2],
        "digest": Digest.of(DATA),
        "size": len(DATA),
        "uid": os.getuid(),
    }
    assert rows(mine, "SELECT environment_key, graph_key, digest, size, uid, created_at FROM v_bundles") == [
        {name: told[name] for name in ("environment_key", "graph_key", "digest", "size", "uid", "created_at")}
    ]


def test_an_archive_that_was_not_handed_in_is_named(mine: Daemon) -> None:
    problem = refused(bind(Worker(mine), DATA), "missing_blobs")
    assert problem["details"]["missing"] == [Digest.of(DATA)]
    assert names_in(mine, "bundles") == []


def test_the_same_archive_again_is_no_news(bound: Daemon) -> None:
    worker = Worker(bound)
    before = document_of(bound)
    assert worker.put(DATA).status == 204
    assert bind(worker, DATA).status == 200
    assert document_of(bound) == before


def test_the_first_archive_stays_and_another_one_is_an_event(bound: Daemon) -> None:
    worker = Worker(bound)
    worker.put(OTHER_DATA)
    refused(bind(worker, OTHER_DATA), "conflict")
    assert lease_of(bound)["files"][0]["digest"] == Digest.of(DATA)
    assert events(bound) == ["bundle_conflict"]


def test_of_many_who_bind_at_once_one_is_first(mine: Daemon) -> None:
    archives = [objects.noise(number, 20_000 + number) for number in range(8)]
    for data in archives:
        assert Worker(mine).put(data).status == 201
    with ThreadPoolExecutor(len(archives)) as pool:
        statuses = [*pool.map(lambda data: bind(Worker(mine), data).status, archives)]
    assert sorted(statuses) == [201] + [409] * 7
    first = archives[statuses.index(201)]
    assert lease_of(mine)["files"][0]["digest"] == Digest.of(first)
    assert len(names_in(mine, f"bundles/{NAME}")) == 1


NONSENSE: list[tuple[str, object]] = [
    ("/v1/bundles/..%2F..%2Fetc/g", {"digest": Digest.of(DATA), "size": 1}),
    ("/v1/bundles/.hidden/g", {"digest": Digest.of(DATA), "size": 1}),
    ("/v1/bundles/e/%00", {"digest": Digest.of(DATA), "size": 1}),
    (f"/v1/bundles/{'e' * 201}/g", {"digest": Digest.of(DATA), "size": 1}),
    (AT, {"digest": "../../etc/passwd", "size": 1}),
    (AT, {"digest": Digest.of(DATA), "size": 0}),
    (AT, {"digest": Digest.of(DATA), "size": -1}),
    (AT, {"digest": Digest.of(DATA), "size": True}),
    (AT, {"digest": Digest.of(DATA)}),
    (AT, {"digest": Digest.of(DATA), "size": 1, "hmac": "0" * 64}),
    (AT, {"digest": Digest.of(DATA), "size": 70_002}),
    (AT, [1]),
]


def test_a_request_that_makes_no_sense_is_refused(mine: Daemon) -> None:
    worker = Worker(mine)
    worker.put(DATA)
    for target, body in NONSENSE:
        refused(worker.ask("PUT", target, body), "invalid_request")
    for source in ("bundle:e", "bundle:.e/g", "bundle:e/-g", "bundle:e/../g", "bundle:e/g/h"):
        refused(worker.lease(source), "invalid_request")
    assert names_in(mine, "bundles") == []


def test_a_bundle_is_leased_whole(bound: Daemon) -> None:
    refused(Worker(bound).lease(BUNDLE, allow_patterns=["*"]), "invalid_request")


def test_a_revision_can_be_asked_for_and_another_is_not_found(bound: Daemon) -> None:
    revision = granted(Worker(bound).ask("GET", AT))["revision"]
    assert granted(Worker(bound).lease(f"{BUNDLE}@{revision}"))["revision"] == revision
    refused(Worker(bound).lease(f"{BUNDLE}@sha256:{'0' * 64}"), "not_found")


def test_a_bundle_and_what_is_not_there_are_leased_together_or_not_at_all(bound: Daemon) -> None:
    refused(Worker(bound).lease(BUNDLE, "bundle:e/g"), "not_found")
    assert rows(bound, "SELECT * FROM v_leases") == []
    (lease,) = granted(Worker(bound).ask("POST", "/v1/leases", {"sources": [BUNDLE]}))["leases"]
    assert lease["kind"] == "bundle"


def test_what_a_bundle_stands_for_can_be_asked(bound: Daemon) -> None:
    (told,) = granted(Worker(bound).ask("POST", "/v1/resolve", {"source": BUNDLE}))["resolved"]
    assert (told["kind"], told["held"], told["files"][0]["digest"]) == ("bundle", True, Digest.of(DATA))


def test_bundles_are_listed_by_environment_without_knowing_their_graphs(bound: Daemon) -> None:
    worker = Worker(bound)
    share(worker, OTHER_DATA, "/v1/bundles/other-gpu/0001")
    share(worker, DATA, "/v1/bundles/other-gpu/0000")
    listed = granted(worker.ask("GET", "/v1/bundles/other-gpu"))["bundles"]
    assert [(one["graph_key"], one["digest"], one["size"]) for one in listed] == [
        ("0000", Digest.of(DATA), len(DATA)),
        ("0001", Digest.of(OTHER_DATA), len(OTHER_DATA)),
    ]
    told = granted(worker.ask("GET", "/v1/bundles/other-gpu/0000"))
    assert {**listed[0], "path": told["path"]} == told
    assert [one["graph_key"] for one in granted(worker.ask("GET", "/v1/bundles"))["bundles"]] == ["9f2c", "0000", "0001"]
    assert granted(worker.ask("GET", "/v1/bundles/no-gpu")) == {"bundles": []}
    refused(worker.ask("GET", "/v1/bundles/..%2F"), "invalid_request")
    granted(evict(bound, "bundle:other-gpu/0001"))
    assert [one["graph_key"] for one in granted(worker.ask("GET", "/v1/bundles/other-gpu"))["bundles"]] == ["0000"]


def test_what_is_not_signed_with_this_daemon_s_key_is_not_listed(bound: Daemon) -> None:
    with sqlite3.connect(index_of(bound)) as db:
        db.execute("UPDATE bundles SET uid = uid + 1")
    db.close()
    assert granted(Worker(bound).ask("GET", "/v1/bundles")) == {"bundles": []}


def test_a_bundle_larger_than_the_operator_allows_is_refused(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon(bundles={"max_size": 70_000})
    Worker(daemon).put(DATA)
    refused(bind(Worker(daemon), DATA), "too_large")
    share(Worker(daemon), OTHER_DATA)


def test_an_archive_with_a_pickle_for_its_bytes_cannot_be_bound(mine: Daemon) -> None:
    data = b"\x80\x04cos\nsystem\nX\x02\x00\x00\x00idR."
    worker = Worker(mine)
    refused(worker.put(data), "unsafe_content")
    refused(bind(worker, data), "missing_blobs")


# ---- whom it is answered


@pytest.mark.root
def test_what_an_untrusted_uid_compiled_is_for_itself_and_the_trusted_only(team: Daemon) -> None:
    share(Worker(team, WORKER), DATA)
    granted(Worker(team, WORKER).lease(BUNDLE))
    granted(Worker(team).lease(BUNDLE))
    refused(Worker(team, OTHER).lease(BUNDLE), "not_found")
    refused(Worker(team, OTHER).ask("GET", AT), "not_found")
    listed = [len(granted(Worker(team, uid).ask("GET", "/v1/bundles"))["bundles"]) for uid in (WORKER, os.getuid(), OTHER)]
    assert listed == [1, 1, 0]


@pytest.mark.root
def test_what_a_trusted_uid_compiled_is_everybody_s(team: Daemon) -> None:
    share(Worker(team), DATA)
    granted(Worker(team, OTHER).lease(BUNDLE))


@pytest.mark.root
def test_a_second_builder_of_the_same_archive_is_answered_too(team: Daemon) -> None:
    share(Worker(team, WORKER), DATA)
    other = Worker(team, OTHER)
    other.put(DATA)
    assert bind(other, DATA).status == 200
    granted(other.lease(BUNDLE))
    assert value(team, "SELECT uid FROM v_bundles") == WORKER


@pytest.mark.root
def test_an_untrusted_uid_cannot_put_its_archive_in_a_trusted_one_s_place(team: Daemon) -> None:
    share(Worker(team), DATA)
    worker = Worker(team, WORKER)
    worker.put(OTHER_DATA)
    refused(bind(worker, OTHER_DATA), "conflict")
    assert granted(worker.lease(BUNDLE))["files"][0]["digest"] == Digest.of(DATA)


@pytest.mark.root
def test_a_trusted_uid_takes_an_untrusted_one_s_place_and_what_was_leased_stays(team: Daemon) -> None:
    worker = Worker(team, WORKER)
    share(worker, DATA)
    before = granted(worker.lease(BUNDLE))
    share(Worker(team), OTHER_DATA)
    assert events(team) == ["bundle_replaced"]
    assert granted(worker.lease(BUNDLE))["files"][0]["digest"] == Digest.of(OTHER_DATA)
    assert (team.store / before["path"] / ARCHIVE).read_bytes() == DATA
    team.restart()
    assert (team.store / before["path"] / ARCHIVE).read_bytes() == DATA
    refused(evict(team, before["revision"]), "in_use")
    assert worker.ask("DELETE", f"/v1/leases/{before['id']}").status == 204
    granted(evict(team, before["revision"]))
    assert not (team.store / before["path"]).exists()
    assert granted(worker.lease(BUNDLE))["files"][0]["digest"] == Digest.of(OTHER_DATA)


@pytest.mark.root
def test_of_two_that_a_lost_index_leaves_the_later_one_counts(team: Daemon) -> None:
    share(Worker(team, WORKER), DATA)
    granted(Worker(team, WORKER).lease(BUNDLE))
    share(Worker(team), OTHER_DATA)
    assert len(names_in(team, f"bundles/{NAME}")) == 2
    team.terminate()
    shutil.rmtree(team.store / "index")
    team.start()
    assert granted(Worker(team, WORKER).lease(BUNDLE))["files"][0]["digest"] == Digest.of(OTHER_DATA)
    assert len(names_in(team, f"bundles/{NAME}")) == 1


@pytest.mark.root
def test_a_trusted_uid_that_compiled_the_same_makes_it_everybody_s(team: Daemon) -> None:
    share(Worker(team, WORKER), DATA)
    share(Worker(team), DATA)
    granted(Worker(team, OTHER).lease(BUNDLE))
    assert value(team, "SELECT uid FROM v_bundles") == 0


# ---- the signature


def test_a_document_is_signed_and_says_what_it_is(bound: Daemon) -> None:
    key = (bound.store / KEY).read_bytes()
    bundle = Bundle.parse((folder_of(bound) / "bundle.json").read_bytes())
    assert bundle.is_signed_with(key)
    assert not bundle.is_signed_with(b"x" + key)
    assert (str(bundle.name), bundle.digest, bundle.size) == (NAME, Digest.of(DATA), len(DATA))


def test_the_key_is_the_daemon_s_alone_and_is_never_shown(bound: Daemon) -> None:
    path = bound.store / KEY
    assert (path.stat().st_mode & 0o777, path.stat().st_uid) == (0o600, os.getuid())
    key = path.read_text()
    shown = [str(Worker(bound).ask("GET", f"/v1/{call}").body) for call in ("status", "health", "snapshots", "openapi.json")]
    shown += [str(Worker(bound).ask("GET", AT).body), str(lease_of(bound)), bound.log_text]
    files = [file for file in bound.store.rglob("*") if file.is_file() and file != path]
    assert not any(key in text for text in shown)
    assert not any(key.encode() in file.read_bytes() for file in files)


@pytest.mark.root
def test_a_worker_that_mounts_the_store_cannot_read_the_key(team: Daemon) -> None:
    share(Worker(team), DATA)
    document = folder_of(team).relative_to(team.store) / "bundle.json"
    script = (
        "import os, sys\n"
        "store = os.open(sys.argv[1], os.O_DIRECTORY)\n"  # the mount that it was given
        f"os.setgroups([{GROUP}]); os.setgid({WORKER}); os.setuid({WORKER})\n"
        "assert os.read(os.open(sys.argv[2], os.O_RDONLY, dir_fd=store), 99)\n"
        f"os.open({KEY!r}, os.O_RDONLY, dir_fd=store)\n"
    )
    argv = [sys.executable, "-c", script, str(team.store), str(document)]
    done = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=30)
    assert f"PermissionError: [Errno 13] Permission denied: '{KEY}'" in done.stderr


FORGERIES: dict[str, dict[str, Any]] = {
    "another digest": {"digest": Digest.of(OTHER_DATA)},
    "another size": {"size": 70_002},
    "another environment": {"environment_key": "a100-cuda12.8-torch2.13"},
    "another graph": {"graph_key": "0000"},
    "another builder": {"uid": 12_345},
    "another time": {"issued": 1},
    "another signature": {"hmac": "0" * 64},
    "no signature": {"hmac": ""},
}


def test_a_document_that_was_tampered_with_is_not_served(bound: Daemon) -> None:
    document = folder_of(bound) / "bundle.json"
    before = document.read_bytes()
    for forgery in FORGERIES.values():
        forge(folder_of(bound), **forgery)
        assert_not_served(bound)
        document.write_bytes(before)
    assert events(bound) == ["bundle_refused"]
    lease_of(bound)


def test_a_document_that_was_tampered_with_is_not_believed_when_the_index_is_lost(bound: Daemon) -> None:
    names = [f"forged/{number}" for number, _ in enumerate(FORGERIES)]
    for name in names:
        share(Worker(bound), DATA, f"/v1/bundles/{name}")
    bound.terminate()
    for name, forgery in zip(names, FORGERIES.values(), strict=True):
        forge(folder_of(bound, name), **forgery)
    shutil.rmtree(bound.store / "index")
    bound.start()
    for name in names:
        refused(Worker(bound).lease(f"bundle:{name}"), "not_found")
    assert events(bound) == ["bundle_refused"] * len(names)
    assert names_in(bound, "bundles") == [NAME.partition("/")[0]]
    lease_of(bound)
    share(Worker(bound), OTHER_DATA, f"/v1/bundles/{names[0]}")


@pytest.mark.parametrize("forgery", ["another digest", "another builder", "another signature"])
def test_a_row_that_was_tampered_with_is_not_served_and_the_next_start_finds_the_true_one(bound: Daemon, forgery: str) -> None:
    (column, wrong), *_ = FORGERIES[forgery].items()
    with sqlite3.connect(index_of(bound)) as db:
        db.execute(f"UPDATE bundles SET {column} = ?", (wrong,))
    db.close()
    assert_not_served(bound)
    bound.restart()
    assert lease_of(bound)["files"][0]["digest"] == Digest.of(DATA)
    assert "bundle_refused" in events(bound)


def test_a_bundle_of_another_environment_under_this_name_is_not_served(bound: Daemon) -> None:
    """Signed by this very daemon, for other hardware."""
    share(Worker(bound), OTHER_DATA, "/v1/bundles/other-gpu/9f2c")
    foreign, own = folder_of(bound, "other-gpu/9f2c"), folder_of(bound)
    bound.terminate()
    shutil.rmtree(own)
    shutil.copytree(foreign, own.parent / foreign.name, symlinks=True)
    shutil.rmtree(bound.store / "index")
    bound.start()
    assert_not_served(bound)
    granted(Worker(bound).lease("bundle:other-gpu/9f2c"))


@pytest.mark.parametrize("lost", [False, True])
def test_what_another_key_signed_is_not_served_and_makes_way(bound: Daemon, lost: bool) -> None:
    bound.terminate()
    (bound.store / KEY).unlink()
    if lost:
        shutil.rmtree(bound.store / "index")
    bound.start()
    assert_not_served(bound)
    assert set(events(bound)) == {"bundle_refused"}
    share(Worker(bound), OTHER_DATA)
    assert lease_of(bound)["files"][0]["digest"] == Digest.of(OTHER_DATA)


def test_a_path_that_is_leased_stays_when_the_key_is_another(bound: Daemon) -> None:
    lease = lease_of(bound)
    bound.terminate()
    (bound.store / KEY).unlink()
    bound.start()
    assert_not_served(bound)
    assert (bound.store / lease["path"] / ARCHIVE).read_bytes() == DATA
    assert bound.call("DELETE", f"/v1/leases/{lease['id']}").status == 204
    bound.restart()
    assert names_in(bound, "bundles") == []


def test_a_key_that_others_could_read_is_no_key_any_more(bound: Daemon) -> None:
    bound.terminate()
    before = (bound.store / KEY).read_bytes()
    (bound.store / KEY).chmod(0o644)
    bound.start()
    assert (bound.store / KEY).read_bytes() != before
    assert_not_served(bound)


def test_the_operator_s_key_signs(make_daemon: MakeDaemon, tmp_path: pathlib.Path) -> None:
    file = tmp_path / "key"
    file.write_text("k" * 40 + "\n")
    file.chmod(0o400)
    daemon = make_daemon(bundles={"key_file": str(file)})
    share(Worker(daemon), DATA)
    assert Bundle.parse((folder_of(daemon) / "bundle.json").read_bytes()).is_signed_with(b"k" * 40)
    assert not (daemon.store / KEY).exists()
    daemon.restart()
    lease_of(daemon)
    file.chmod(0o600)
    file.write_text("r" * 40)
    daemon.restart()
    assert_not_served(daemon)


def test_an_operator_s_key_that_cannot_be_used_is_named_at_start(mine: Daemon, tmp_path: pathlib.Path) -> None:
    mine.terminate()
    short, lax = tmp_path / "short", tmp_path / "lax"
    short.write_text("k" * 31)
    lax.write_text("k" * 40)
    short.chmod(0o600)
    lax.chmod(0o604)
    for file in (short, lax, tmp_path / "nowhere", tmp_path):
        mine.settings["bundles"] = {"key_file": str(file)}
        mine.launch()
        assert mine.wait() == 78
        assert f"bundles.key_file: {file} cannot be used" in mine.log_text
    assert "kkkkkkkk" not in mine.log_text


# ---- the bytes


def blob_of(daemon: Daemon, data: bytes) -> Any:
    return daemon.store / "blobs" / "sha256" / Digest.of(data).hex[:2] / Digest.of(data).hex


def test_an_archive_whose_bytes_are_wrong_is_not_served_and_is_put_aside(bound: Daemon) -> None:
    lease_of(bound)
    for row in rows(bound, "SELECT id FROM v_leases"):
        bound.call("DELETE", f"/v1/leases/{row['id']}")
    blob = blob_of(bound, DATA)
    blob.chmod(0o640)
    blob.write_bytes(b"x" * len(DATA))
    assert_not_served(bound)
    assert set(events(bound)) == {"quarantined", "bundle_refused"}
    assert not blob.exists()
    worker = Worker(bound)
    assert worker.put(DATA).status == 201
    assert bind(worker, DATA).status == 201
    assert (bound.store / lease_of(bound)["path"] / ARCHIVE).read_bytes() == DATA


def test_an_archive_deleted_by_hand_is_a_miss(bound: Daemon) -> None:
    blob_of(bound, DATA).unlink()
    assert_not_served(bound)
    share(Worker(bound), DATA)
    lease_of(bound)


def test_a_folder_that_is_not_what_was_bound_is_not_served_until_bound_again(bound: Daemon) -> None:
    folder = folder_of(bound)

    def link_elsewhere() -> None:
        (folder / ARCHIVE).unlink()
        (folder / ARCHIVE).symlink_to("/etc/passwd")

    deeds = (lambda: shutil.rmtree(folder), (folder / ARCHIVE).unlink, link_elsewhere, lambda: (folder / "x").write_bytes(b"x"))
    for deed in deeds:
        deed()
        assert_not_served(bound)
        share(Worker(bound), DATA)
        lease_of(bound)


# ---- restarts, crashes, room


def test_a_bundle_outlives_a_restart_and_a_lost_index(bound: Daemon) -> None:
    told = granted(Worker(bound).ask("GET", AT))
    bound.restart()
    assert granted(Worker(bound).ask("GET", AT)) == told
    bound.terminate()
    shutil.rmtree(bound.store / "index")
    bound.start()
    assert granted(Worker(bound).ask("GET", AT)) == told
    lease_of(bound)
    assert_index_and_disk_agree(bound)


def test_what_lies_in_bundles_and_is_none_is_put_aside(bound: Daemon) -> None:
    bound.terminate()
    (bound.store / "bundles" / "stray").write_bytes(b"x")
    (bound.store / "bundles" / NAME.partition("/")[0] / ".stray").mkdir()
    (bound.store / "bundles" / NAME / "0000").symlink_to("/etc")
    bound.start()
    lease_of(bound)
    assert names_in(bound, "bundles") == [NAME.partition("/")[0]]
    assert len(names_in(bound, "quarantine")) == 3


def test_a_bundle_s_bytes_are_counted_once_and_apart(mine: Daemon) -> None:
    worker = Worker(mine)
    share(worker, DATA)
    share(worker, DATA, "/v1/bundles/e/g")
    held = granted(worker.ask("GET", "/v1/status"))["held_bytes"]
    assert (held["bundles"], held["ready"]) == (len(DATA), 0)
    assert f'hotshelf_store_bytes{{state="bundles"}} {float(len(DATA))}' in mine.get_http("/metrics").body


def test_a_bundle_nobody_leases_makes_room_and_a_leased_one_does_not(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon(budget=100_000)
    worker = Worker(daemon)
    share(worker, DATA)
    lease = lease_of(daemon)
    refused(worker.put(OTHER_DATA), "insufficient_space")
    assert daemon.call("DELETE", f"/v1/leases/{lease['id']}").status == 204
    share(worker, OTHER_DATA, "/v1/bundles/e/g")
    refused(worker.lease(BUNDLE), "not_found")
    assert os.listdir(daemon.store / "bundles") == ["e"]
    assert [row["environment_key"] for row in rows(daemon, "SELECT * FROM v_bundles")] == ["e"]


def test_an_evicted_bundle_leaves_nothing(bound: Daemon) -> None:
    granted(evict(bound))
    assert_not_served(bound)
    for folder in ("bundles", "snapshots", "refs", "manifests", "trash"):
        assert names_in(bound, folder) == []
    wait_until(lambda: blobs_on_disk(bound) == {})
    assert rows(bound, "SELECT * FROM v_bundles") == []


def test_a_pinned_bundle_stays(bound: Daemon) -> None:
    granted(bound.call("PUT", f"/v1/pins/{quote(BUNDLE, safe='')}"))
    refused(evict(bound), "in_use")


def test_a_bundle_is_shown_with_its_snapshot(bound: Daemon) -> None:
    shown = granted(bound.call("GET", f"/v1/snapshots/{quote(BUNDLE, safe='')}"))
    assert (shown["bundles"], shown["sources"]) == ([NAME], [BUNDLE])


def test_a_daemon_killed_right_after_it_answered_has_the_bundle(bound: Daemon) -> None:
    revision = granted(Worker(bound).ask("GET", AT))["revision"]
    bound.kill9()
    promise = Promise(revision, {ARCHIVE: Digest.of(DATA)})
    assert list(wrongs_after_restart(bound.store, [promise])) == []
    bound.start()
    lease_of(bound)


def test_an_index_from_before_bundles_were_signed_is_brought_up_to_date(bound: Daemon) -> None:
    bound.terminate()
    with sqlite3.connect(index_of(bound)) as db:
        db.executescript(
            "DROP TABLE bundle_builders; DROP TABLE replaced_bundles; DROP INDEX bundles_by_revision;"
            "ALTER TABLE bundles DROP COLUMN revision; ALTER TABLE bundles DROP COLUMN hmac;"
            "DELETE FROM _sqlite_migrations WHERE name LIKE 'm004%'"
        )
    db.close()
    bound.start()
    lease_of(bound)
