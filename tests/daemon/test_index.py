"""The index: readable by anyone who may, never in the daemon's way, and rebuilt from the volume when it is lost."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest

from hotshelf_daemon.config import load
from tests import objects
from tests.conftest import BUCKET
from tests.daemon.conftest import MakeDaemon, Put
from tests.daemon.looking import (
    assert_index_and_disk_agree,
    blobs_on_disk,
    granted,
    index_of,
    names_in,
    rows,
    tree_of,
    value,
)
from tests.daemon_process import Daemon
from tests.objects import Digest
from tests.servers.recorder import Recorder
from tests.servers.seaweedfs import SeaweedFS

VIEWS = [
    f"v_{name}"
    for name in (
        "snapshots", "blobs", "files", "refs", "leases", "pins", "transfers", "requests", "evictions", "pipelines", "bundles",
        "events", "waste",
    )
]  # fmt: skip
GROUP = 61_000
SECRET = "s3cr3t-canary-that-must-never-be-seen"


@pytest.fixture
def mine(make_daemon: MakeDaemon, seaweedfs: SeaweedFS, recorder: Recorder) -> Daemon:
    """A daemon that may be killed."""
    return make_daemon(origins={"weed": seaweedfs.settings(BUCKET, endpoint_url=recorder.endpoint_url)}, revalidate_s=600)


def blob_file(daemon: Daemon, data: bytes) -> pathlib.Path:
    name = Digest.of(data).hex
    return daemon.store / "blobs" / "sha256" / name[:2] / name


# ---- the views


def test_every_view_is_there_and_tells_what_was_done(shared: Daemon, put: Put) -> None:
    tree = {"a.safetensors": b"a" * 500, "b.json": b"{}"}
    source = put(tree)
    lease = granted(shared.acquire(source))
    granted(shared.call("PUT", f"/v1/pins/{quote(source, safe='')}"))
    assert {view: len(rows(shared, f"SELECT * FROM {view}")) > 0 for view in VIEWS} == {
        **dict.fromkeys(VIEWS, True), "v_transfers": False, "v_evictions": False, "v_pipelines": False, "v_bundles": False,
        "v_events": False,
    }  # fmt: skip
    (snapshot,) = rows(shared, "SELECT * FROM v_snapshots WHERE revision = ?", lease["revision"])
    assert (snapshot["state"], snapshot["bytes"], snapshot["files"], snapshot["leases"], snapshot["pinned"]) == (
        "ready", 502, 2, 1, 1,
    )  # fmt: skip
    assert (snapshot["path"], snapshot["sources"]) == (lease["path"], source)
    told = {row["path"]: row["digest"] for row in rows(shared, "SELECT * FROM v_files WHERE revision = ?", lease["revision"])}
    assert told == {path: Digest.of(data) for path, data in tree.items()}


def test_the_looks_tell_what_the_views_tell(shared: Daemon, put: Put) -> None:
    source = put({"a.safetensors": b"look" * 100, "a.bin": b"x"})
    lease = granted(shared.acquire(source))
    shown = granted(shared.call("GET", f"/v1/snapshots/{quote(source, safe='')}"))
    assert shown == granted(shared.call("GET", f"/v1/snapshots/{lease['revision']}"))
    assert (shown["revision"], shown["size"], shown["sources"], shown["leases"]) == (lease["revision"], 400, [source], 1)
    assert shown["manifest"] == [{"path": "a.safetensors", "digest": Digest.of(b"look" * 100), "size": 400}]
    assert shown["skipped"] == [{"path": "a.bin", "reason": "pickle by name"}]
    listed = granted(shared.call("GET", "/v1/snapshots"))["snapshots"]
    assert lease["revision"] in {one["revision"] for one in listed}
    status = granted(shared.call("GET", "/v1/status"))
    assert (status["pid"], status["store"], status["api_version"]) == (shared.pid, str(shared.store), 1)
    assert status["held_bytes"]["ready"] == sum(blobs_on_disk(shared).values())
    assert (status["blobs"], status["leases"]) == (len(blobs_on_disk(shared)), value(shared, "SELECT count(*) FROM v_leases"))


# ---- readers


READ = """
import os, sqlite3, sys
os.setgroups([61_000]); os.setgid(61_001); os.setuid(61_001)
reader = sqlite3.connect(f"file:{sys.argv[1]}?mode=ro", uri=True, timeout=5)
print(reader.execute("SELECT count(*) FROM v_snapshots").fetchone()[0], flush=True)
if sys.argv[2:] == ["stay"]:
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM v_blobs").fetchone()
    print("staying", flush=True)
    sys.stdin.read()
"""


def read_as_another(daemon: Daemon) -> str:
    argv = [sys.executable, "-c", READ, str(index_of(daemon))]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    return done.stdout + done.stderr


@contextlib.contextmanager
def staying_reader(daemon: Daemon) -> Iterator[None]:
    """A reader of another uid that sits in its transaction."""
    argv = [sys.executable, "-c", READ, str(index_of(daemon)), "stay"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert [process.stdout.readline() for _ in range(2)][1] == "staying\n"
            yield
            assert process.poll() is None
        finally:
            process.kill()


@pytest.fixture
def readable(open_folder: pathlib.Path, seaweedfs: SeaweedFS) -> Iterator[Daemon]:
    """A daemon whose store belongs to a group, where another uid of that group can get to."""
    with Daemon(open_folder / "d", origins={"weed": seaweedfs.settings(BUCKET)}, socket_group=str(GROUP)) as daemon:
        yield daemon


@pytest.mark.root
def test_a_reader_of_another_uid_reads_while_the_daemon_lives_after_a_kill_and_after_a_stop(readable: Daemon, put: Put) -> None:
    granted(readable.acquire(put({"a.safetensors": b"a" * 500})))
    assert read_as_another(readable) == "1\n"
    granted(readable.acquire(put({"a.safetensors": b"b" * 500}, "-two")))
    assert read_as_another(readable) == "2\n"
    readable.kill9()
    assert read_as_another(readable) == "2\n"
    readable.start()
    granted(readable.acquire(put({"a.safetensors": b"c" * 500}, "-three")))
    assert readable.terminate() == 0
    assert read_as_another(readable) == "3\n"
    assert sorted(os.listdir(readable.store / "index")) == ["index.db"]
    readable.start()
    assert all(os.stat(readable.store / "index" / name).st_uid == os.getuid() for name in os.listdir(readable.store / "index"))


@pytest.mark.root
def test_a_reader_that_stays_never_hinders_the_daemon(readable: Daemon, put: Put) -> None:
    granted(readable.acquire(put({"a.safetensors": b"a" * 500})))
    with staying_reader(readable):
        for number in range(20):
            granted(readable.acquire(put({"a.safetensors": b"%d" % number * 200}, f"-{number}")))
        assert readable.terminate() == 0
        readable.start()
        granted(readable.acquire(put({"a.safetensors": b"x" * 500}, "-after")))
    assert read_as_another(readable) == "22\n"


@pytest.mark.root
def test_a_reader_that_came_while_the_daemon_was_down_does_not_keep_it_from_coming_back(readable: Daemon, put: Put) -> None:
    source = put({"a.safetensors": b"a" * 500})
    granted(readable.acquire(source))
    assert readable.terminate() == 0
    with staying_reader(readable):
        readable.start()
        assert granted(readable.acquire(source))
        granted(readable.acquire(put({"a.safetensors": b"b" * 500}, "-two")))
    assert "rebuilt" not in readable.log_text
    readable.kill9()
    readable.start()
    assert read_as_another(readable) == "2\n"


# ---- lost and broken


def lose(daemon: Daemon) -> None:
    for path in (daemon.store / "index").iterdir():
        path.unlink()


def break_(daemon: Daemon) -> None:
    index_of(daemon).write_bytes(b"this is no database at all" * 1_000)


def break_inside(daemon: Daemon) -> None:
    """Pages of zeros where tables were; the header is intact."""
    with index_of(daemon).open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(8_192)
        file.write(bytes(size - 8_192))


@pytest.mark.parametrize("harm", [lose, break_, break_inside])
def test_an_index_that_is_lost_or_broken_is_rebuilt_and_every_name_still_resolves_with_the_origin_off(
    make_daemon: MakeDaemon, seaweedfs: SeaweedFS, recorder: Recorder, put: Put, harm: Any
) -> None:
    model, style = objects.model(1), objects.lora(1)
    source = put({**{f"m/{path}": data for path, data in model.items()}, "m/x.bin": b"p", "style.safetensors": style})
    daemon = make_daemon(
        origins={"weed": seaweedfs.settings(BUCKET, endpoint_url=recorder.endpoint_url)},
        models={"sdxl": {"source": f"{source}/m"}},
        loras={"style": {"source": f"{source}/style.safetensors"}},
    )
    wishes: list[tuple[str, dict[str, Any]]] = [
        ("sdxl", {}),
        (f"{source}/m", {}),
        ("style", {}),
        (f"{source}/m", {"allow_patterns": ["*.json"], "ignore_patterns": ["x*"]}),
    ]
    before = [granted(daemon.acquire(name, **more)) for name, more in wishes]
    granted(daemon.call("PUT", "/v1/pins/sdxl"))
    granted(daemon.call("PUT", f"/v1/pins/{before[3]['revision']}"))
    assert daemon.terminate() == 0
    harm(daemon)
    with recorder.down():
        daemon.start()
        after = [granted(daemon.acquire(name, **more)) for name, more in wishes]
        for one, other in zip(before, after, strict=True):
            assert [one[k] for k in ("revision", "path", "kind", "files", "skipped", "source")] == [
                other[k] for k in ("revision", "path", "kind", "files", "skipped", "source")
            ]
            assert set(tree_of(daemon, other)) == {file["path"] for file in other["files"]}
        assert {pin["target"]: pin["revision"] for pin in granted(daemon.call("GET", "/v1/pins"))["pins"]} == {
            "sdxl": before[0]["revision"], before[3]["revision"]: before[3]["revision"],
        }  # fmt: skip
    assert_index_and_disk_agree(daemon)
    if harm is not lose:
        assert any("broken" in name for name in names_in(daemon, "index"))
        assert "rebuilt" in daemon.log_text


def test_an_index_of_a_newer_version_is_refused_and_left_alone(mine: Daemon) -> None:
    assert mine.terminate() == 0
    with contextlib.closing(sqlite3.connect(index_of(mine))) as db, db:
        (table,) = (
            name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE name LIKE '%migrations%' AND type='table'")
        )
        columns = [row[1] for row in db.execute(f"PRAGMA table_info({table})")]
        values = {"migration_set": "hotshelf", "name": "m999_from_the_future", "applied_at": "2030-01-01", "id": 999}
        given = {column: values[column] for column in columns}
        db.execute(f"INSERT INTO {table} ({', '.join(given)}) VALUES ({', '.join('?' * len(given))})", [*given.values()])
    before = index_of(mine).read_bytes()
    mine.launch()
    assert mine.wait() == 78
    assert "newer" in mine.log_text
    assert "m999_from_the_future" in mine.log_text
    assert index_of(mine).read_bytes() == before


def test_an_index_may_lie_elsewhere(make_daemon: MakeDaemon, seaweedfs: SeaweedFS, put: Put, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "elsewhere" / "my.db"
    daemon = make_daemon(origins={"weed": seaweedfs.settings(BUCKET)}, index={"path": str(path)})
    granted(daemon.acquire(put({"a.safetensors": b"a" * 500})))
    assert path.exists()
    assert granted(daemon.call("GET", "/v1/status"))["index"] == str(path)
    assert not (daemon.store / "index").exists()


# ---- bytes lost and broken


def test_a_blob_deleted_by_hand_is_fetched_again_and_nothing_else_is(
    mine: Daemon, put: Put, recorder: Recorder, prefix: str
) -> None:
    tree = objects.model(1)
    lost = tree["unet/diffusion_pytorch_model.safetensors"]
    source = put(tree)
    revision = granted(mine.acquire(source))["revision"]
    assert mine.terminate() == 0
    blob_file(mine, lost).unlink()
    before = recorder.bytes_for(prefix)
    mine.start()
    assert value(mine, "SELECT state FROM v_snapshots WHERE revision = ?", revision) == "damaged"
    lease = granted(mine.acquire(source))
    assert (lease["revision"], tree_of(mine, lease)) == (revision, tree)
    assert recorder.bytes_for(prefix) - before == len(lost)
    assert value(mine, "SELECT state FROM v_snapshots WHERE revision = ?", revision) == "ready"
    assert_index_and_disk_agree(mine)


@pytest.mark.parametrize("spoil", ["other bytes", "zeros", "gone", "a link"])
def test_what_verify_finds_wrong_is_put_aside_and_fetched_again(mine: Daemon, put: Put, spoil: str) -> None:
    tree = {"a.safetensors": b"right" * 1_000, "b.safetensors": b"also" * 1_000}
    source = put(tree)
    lease = granted(mine.acquire(source))
    path, wrong = blob_file(mine, tree["a.safetensors"]), Digest.of(tree["a.safetensors"])
    os.chmod(path, 0o600)
    if spoil in ("gone", "a link"):
        path.unlink()
    if spoil == "a link":
        path.symlink_to(blob_file(mine, tree["b.safetensors"]))
    elif spoil != "gone":
        path.write_bytes(b"wrong" * 1_000 if spoil == "other bytes" else bytes(5_000))
    found = granted(mine.call("POST", "/v1/verify", {"revision": source}))
    assert (found["checked"], found["wrong"], found["damaged"]) == (2, [wrong], [lease["revision"]])
    assert tree_of(mine, granted(mine.acquire(source))) == tree
    assert granted(mine.call("POST", "/v1/verify"))["wrong"] == []
    assert {row["kind"] for row in rows(mine, "SELECT kind FROM v_events")} == {"quarantined"}
    if spoil in ("other bytes", "zeros"):
        assert len(names_in(mine, "quarantine")) == 1
        assert granted(mine.call("GET", "/v1/status"))["held_bytes"]["quarantine"] == 5_000


def test_a_snapshot_s_folder_deleted_by_hand_is_laid_out_again(mine: Daemon, put: Put, recorder: Recorder) -> None:
    tree = objects.model(1)
    source = put(tree)
    lease = granted(mine.acquire(source))
    shutil.rmtree(mine.store / lease["path"])
    assert tree_of(mine, granted(mine.acquire(source))) == tree
    shutil.rmtree(mine.store / lease["path"])
    mine.terminate()
    with recorder.down():
        mine.start()
        assert tree_of(mine, granted(mine.acquire(source))) == tree


def test_what_somebody_planted_in_the_store_is_never_served(mine: Daemon, put: Put) -> None:
    tree = {"a.safetensors": b"right" * 100}
    source = put(tree)
    assert mine.terminate() == 0
    wanted, name = blob_file(mine, tree["a.safetensors"]), Digest.of(b"planted").hex
    wanted.parent.mkdir(parents=True, exist_ok=True)
    wanted.write_bytes(b"wrong" * 100)
    good = blob_file(mine, b"planted")
    good.parent.mkdir(parents=True, exist_ok=True)
    good.write_bytes(b"planted")
    (mine.store / "blobs" / "sha256" / "nonsense").mkdir()
    (mine.store / "snapshots" / ("0" * 64)).symlink_to("/etc")
    (mine.store / "manifests" / f"{'1' * 64}.json").write_text("{}")
    (mine.store / "refs" / f"{'2' * 64}.json").write_text('{"wish": "x"}')
    for folder in ("refs", "pins", "manifests"):
        (mine.store / folder / f"{'3' * 64}.json").mkdir()
    (mine.store / "pins" / "x.json").write_text("[1]")
    (mine.store / "ingest" / "stale").write_bytes(b"x" * 1_000)
    (mine.store / "trash" / "stale").mkdir()
    mine.start()
    assert tree_of(mine, granted(mine.acquire(source))) == tree
    assert value(mine, "SELECT size FROM v_blobs WHERE digest = ?", f"sha256:{name}") == 7  # its bytes are right: adopted
    assert len(names_in(mine, "quarantine")) == 2
    assert (names_in(mine, "trash"), names_in(mine, "ingest")) == ([], [])
    assert len(names_in(mine, "snapshots")) == len(names_in(mine, "refs")) == len(names_in(mine, "manifests")) == 1
    assert pathlib.Path("/etc/passwd").exists()


# ---- secrets


def test_no_secret_is_ever_seen(make_daemon: MakeDaemon, seaweedfs: SeaweedFS, put: Put, tmp_path: pathlib.Path) -> None:
    source = put({"a.safetensors": b"a" * 200})
    origins = {
        "weed": seaweedfs.settings(BUCKET),
        "wrong": seaweedfs.settings("other", secret_access_key=SECRET, session_token=SECRET + "-token"),
        "nowhere": seaweedfs.settings("nowhere", endpoint_url="http://127.0.0.1:9", secret_access_key=SECRET),
    }
    env = {"HF_TOKEN": SECRET, "HOTSHELF_FETCH__ATTEMPTS": "1"}
    daemon = make_daemon(origins=origins, env=env, log_level="debug")
    told = [daemon.acquire(name) for name in (source, "s3://other/a", "s3://nowhere/a", f"s3://x:{SECRET}@b/a", "no-name")]
    assert [reply.status for reply in told] == [200, 403, 503, 400, 404]
    looks = [daemon.call("GET", f"/v1/{name}") for name in ("status", "health", "snapshots", "transfers", "openapi.json")]
    index = [rows(daemon, f"SELECT * FROM {view}") for view in VIEWS]
    seen = json.dumps([reply.body for reply in told + looks]) + json.dumps(index) + daemon.get_http("/metrics").body
    assert daemon.terminate() == 0
    everything = b"".join(path.read_bytes() for path in daemon.store.rglob("*") if path.is_file())
    shown = repr(load({"config": str(tmp_path / "daemon" / "hotshelf.yaml")}, env).rows())
    assert SECRET not in seen + daemon.log_text + shown
    assert SECRET.encode() not in everything
    assert seaweedfs.secret_access_key not in seen + daemon.log_text
