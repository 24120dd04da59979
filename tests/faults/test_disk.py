"""Rows 37 to 52: disks that are full, broken, replaced or turned read-only; blobs that rot or disappear."""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from hotshelf_daemon import app
from hotshelf_daemon.config import Settings
from hotshelf_daemon.metrics import Metrics
from hotshelf_daemon.store import durable
from hotshelf_shared.errors import InsufficientSpace
from tests import objects
from tests.daemon.looking import granted, names_in, refused, rows, tree_of, value
from tests.daemon.test_desk import House, run
from tests.daemon_process import Daemon
from tests.faults.invariants import visible_wrongs
from tests.waiting import wait_until

MakeDaemon = Callable[..., Daemon]
NOBODY = 65_534


@pytest.fixture
def origin(tmp_path: pathlib.Path) -> pathlib.Path:
    folder = tmp_path / "origin"
    for name in ("one", "two"):
        objects.write(folder / name, objects.model(name, unet=300_000))
    return folder


@pytest.fixture
def start(make_daemon: MakeDaemon, origin: pathlib.Path) -> MakeDaemon:
    def started(name: str = "daemon", **settings: Any) -> Daemon:
        return make_daemon(name, roots=[str(origin)], revalidate_s=3_600, **settings)

    return started


def acquire(daemon: Daemon, origin: pathlib.Path, name: str = "one") -> Any:
    return daemon.acquire(f"file://{origin / name}")


def blob_of(daemon: Daemon, data: bytes) -> pathlib.Path:
    digest = objects.Digest.of(data).hex
    return daemon.store / "blobs" / "sha256" / digest[:2] / digest


# ---- full


class FullOnce:
    """posix_fallocate on a disk that is full the first `times` times."""

    def __init__(self, error: int, times: int) -> None:
        self.error, self.times, self.genuine = error, times, os.posix_fallocate

    def __call__(self, fd: int, offset: int, size: int) -> None:
        if size == 5_000 and self.times:
            self.times -= 1
            raise OSError(self.error, os.strerror(self.error))
        self.genuine(fd, offset, size)


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_fuller_than_it_said_makes_what_nobody_holds_go_once(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    async def story(house: House) -> None:
        unused = await house.acquire(house.put("unused", 6_000))
        await house.leasing.take_back([unused.id])
        full = FullOnce(error, times=1)
        monkeypatch.setattr(durable.os, "posix_fallocate", full)
        wanted = await house.acquire(house.put("wanted", 5_000))
        assert full.times == 0
        ready = [r for (r,) in map(tuple, house.index.read(lambda db: db.execute("SELECT revision FROM snapshots").fetchall()))]
        assert ready == [wanted.revision]

    run(tmp_path, story, budget=1 << 20)


def test_a_full_disk_that_cannot_be_helped_says_how_much_is_lacking_and_loses_nothing(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(house: House) -> None:
        await house.acquire(house.put("held", 6_000))
        monkeypatch.setattr(durable.os, "posix_fallocate", FullOnce(errno.ENOSPC, times=9))
        with pytest.raises(InsufficientSpace) as refusal:
            await house.acquire(house.put("wanted", 5_000))
        assert "5,000 bytes are needed" in refusal.value.message
        assert refusal.value.retryable
        assert os.listdir(house.layout["ingest"]) == []
        await house.acquire("s3://b/held")

    run(tmp_path, story, budget=1 << 20)


@contextlib.contextmanager
def mounted(at: pathlib.Path, *options: str) -> Iterator[pathlib.Path]:
    at.mkdir(exist_ok=True)
    subprocess.run(["mount", *options, str(at)], check=True, capture_output=True)
    try:
        yield at
    finally:
        subprocess.run(["umount", "-l", str(at)], check=False, capture_output=True)


@pytest.mark.root
@pytest.mark.parametrize("limit", ["size=6m", "size=64m,nr_inodes=130"], ids=["bytes", "inodes"])
def test_a_volume_without_room_or_inodes_is_a_typed_error_and_what_is_held_is_served(
    start: MakeDaemon, origin: pathlib.Path, tmp_path: pathlib.Path, limit: str
) -> None:
    with mounted(tmp_path / "small", "-t", "tmpfs", "-o", limit, "tmpfs") as volume:
        daemon = start(store=volume / "store", budget="100%", reserve=0)
        lease = granted(acquire(daemon, origin))
        filled = 0
        with contextlib.suppress(OSError):  # somebody else fills the volume
            while True:
                with (volume / f"filler-{filled}").open("wb") as file:
                    os.posix_fallocate(file.fileno(), 0, 1 << 16)
                filled += 1
        refused(daemon.acquire(f"file://{origin / 'two'}", timeout_s=1), "insufficient_space")
        assert tree_of(daemon, granted(acquire(daemon, origin))) == objects.read(origin / "one")
        assert list(visible_wrongs(daemon.store)) == []
        for number in range(filled):
            (volume / f"filler-{number}").unlink()
        assert tree_of(daemon, granted(acquire(daemon, origin, "two"))) == objects.read(origin / "two")
        count = "SELECT count(*) FROM v_leases WHERE revision = ?"
        wait_until(lambda: value(daemon, count, lease["revision"]) == 2, what="the leases to be written down")
        daemon.kill9()


@pytest.mark.root
@pytest.mark.needs("strace")
@pytest.mark.parametrize("error", ["EROFS", "ENOSPC", "EIO"])
def test_while_nothing_can_be_written_what_is_held_is_served_and_its_leases_count(
    start: MakeDaemon, origin: pathlib.Path, error: str
) -> None:
    daemon = start()
    lease = granted(acquire(daemon, origin))
    granted(acquire(daemon, origin, "two"))
    calls = "pwrite64,fallocate,mkdirat,mkdir,renameat,renameat2,ftruncate"
    with traced(daemon, "-e", f"trace={calls}", "-e", f"inject={calls}:error={error}"):
        again = granted(acquire(daemon, origin))
        assert tree_of(daemon, again) == objects.read(origin / "one")
        assert daemon.call("DELETE", f"/v1/leases/{lease['id']}").status == 204
        assert refused_code(daemon.acquire(f"file://{origin}/one/unet")) in ("insufficient_space", "internal_error")
    wait_until(lambda: value(daemon, "SELECT count(*) FROM v_leases WHERE id = ?", again["id"]) == 1)
    assert value(daemon, "SELECT count(*) FROM v_leases WHERE id = ?", lease["id"]) == 0
    assert refused(daemon.call("DELETE", f"/v1/snapshots/{again['revision']}"), "in_use")["retryable"]
    assert daemon.call("DELETE", f"/v1/leases/{again['id']}").status == 204
    granted(daemon.call("DELETE", f"/v1/snapshots/{again['revision']}"))
    assert '"defect"' not in daemon.log_text


def refused_code(reply: Any) -> str:
    assert reply.status >= 400, reply
    return str(reply.body["code"])


@contextlib.contextmanager
def traced(daemon: Daemon, *options: str) -> Iterator[None]:
    """The running daemon under strace, all its threads."""
    argv = ["strace", "-f", "-qq", "-o", os.devnull, *options, "-p", str(daemon.pid)]
    with subprocess.Popen(argv, stderr=subprocess.DEVNULL) as tracer:
        tasks = pathlib.Path(f"/proc/{daemon.pid}/task")

        def attached() -> bool:
            return all("TracerPid:\t0\n" not in (task / "status").read_text() for task in tasks.iterdir())

        try:
            wait_until(attached, what="strace to attach", every_s=0.005)
            yield
        finally:
            tracer.terminate()
            tracer.wait(10)


# ---- rot


def flip_a_bit(blob: pathlib.Path) -> None:
    data = bytearray(blob.read_bytes())
    data[len(data) // 2] ^= 4
    rewrite(blob, bytes(data))


def rewrite(blob: pathlib.Path, data: bytes) -> None:
    os.chmod(blob, 0o600)
    blob.write_bytes(data)
    os.chmod(blob, 0o440)


ROT: dict[str, Callable[[pathlib.Path], object]] = {
    "45 a bit flipped": flip_a_bit,
    "46 a hole of the right size": lambda blob: (rewrite(blob, b""), os.truncate(blob, 300_000)),
    "43 a sync that lied": lambda blob: rewrite(blob, blob.read_bytes()[:4_096] + bytes(300_000 - 4_096)),
    "46 nothing left": lambda blob: rewrite(blob, b""),
    "44 half of it": lambda blob: rewrite(blob, blob.read_bytes()[:150_000]),
    "78 a link": lambda blob: (blob.unlink(), blob.symlink_to("/etc/passwd")),
    "78 a pipe": lambda blob: (blob.unlink(), os.mkfifo(blob)),
    "78 a device": lambda blob: (blob.unlink(), os.mknod(blob, 0o600 | 0o020000, os.makedev(1, 5))),
    "78 a folder": lambda blob: (blob.unlink(), blob.mkdir()),
}


@pytest.mark.root
@pytest.mark.parametrize("rot", ROT.values(), ids=ROT)
def test_what_rots_on_the_disk_is_found_put_aside_and_fetched_anew(
    start: MakeDaemon, origin: pathlib.Path, rot: Callable[[pathlib.Path], object]
) -> None:
    daemon = start()
    lease = granted(acquire(daemon, origin))
    unet = objects.read(origin / "one")["unet/diffusion_pytorch_model.safetensors"]
    rot(blob_of(daemon, unet))
    found = granted(daemon.call("POST", "/v1/verify", {}))
    assert found["wrong"] == [str(objects.Digest.of(unet))]
    assert found["damaged"] == [lease["revision"]]
    assert len(names_in(daemon, "quarantine")) == 1
    assert tree_of(daemon, granted(acquire(daemon, origin))) == objects.read(origin / "one")
    assert granted(daemon.call("POST", "/v1/verify", {}))["wrong"] == []
    assert list(visible_wrongs(daemon.store)) == []


@pytest.mark.root
@pytest.mark.needs("strace")
def test_a_blob_that_cannot_be_read_is_put_aside(start: MakeDaemon, origin: pathlib.Path) -> None:
    daemon = start()
    granted(acquire(daemon, origin))
    unet = objects.read(origin / "one")["unet/diffusion_pytorch_model.safetensors"]
    blob = blob_of(daemon, unet)
    calls = "read,pread64,preadv,preadv2"
    with traced(daemon, "-P", str(blob), "-e", f"trace={calls}", "-e", f"inject={calls}:error=EIO"):
        found = granted(daemon.call("POST", "/v1/verify", {}))
    assert found["wrong"] == [str(objects.Digest.of(unet))]
    assert tree_of(daemon, granted(acquire(daemon, origin))) == objects.read(origin / "one")


# ---- descriptors


def test_a_daemon_without_descriptors_sheds_and_recovers_and_condemns_nothing(start: MakeDaemon, origin: pathlib.Path) -> None:
    daemon = start()
    granted(acquire(daemon, origin))
    used = len(os.listdir(f"/proc/{daemon.pid}/fd"))
    limit(daemon, used + 2)
    codes = {acquire(daemon, origin, "two").body.get("code") for _ in range(3)}
    codes.add(daemon.call("POST", "/v1/verify", {}).body.get("code"))
    assert codes <= {None, "daemon_unavailable", "origin_unavailable", "internal_error"}, codes
    assert "daemon_unavailable" in codes
    limit(daemon, 1_024)
    assert tree_of(daemon, granted(acquire(daemon, origin, "two"))) == objects.read(origin / "two")
    assert granted(daemon.call("POST", "/v1/verify", {}))["wrong"] == []
    assert names_in(daemon, "quarantine") == []
    assert '"defect"' not in daemon.log_text


def limit(daemon: Daemon, descriptors: int) -> None:
    import resource

    resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (descriptors, 4_096))


# ---- the volume


@pytest.mark.root
def test_a_volume_mounted_inside_the_store_is_refused(start: MakeDaemon, tmp_path: pathlib.Path) -> None:
    store = tmp_path / "store"
    (store / "blobs").mkdir(parents=True)
    with mounted(store / "blobs", "-t", "tmpfs", "tmpfs"):
        daemon = start(start=False, store=store)
        daemon.launch()
        assert daemon.wait() == 78
        assert "different file systems" in daemon.log_text
        assert "PIPELINE_STORE" in daemon.log_text


@pytest.mark.parametrize("error", [errno.ESTALE, errno.EIO])
def test_a_stale_handle_is_a_miss(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, error: int) -> None:
    genuine, refusals = os.stat, [error]

    def stat(path: Any, **more: Any) -> os.stat_result:
        if "dir_fd" in more and len(str(path)) == 64 and refusals:
            raise OSError(refusals.pop(), "stale")
        return genuine(path, **more)

    async def story(house: House) -> None:
        before = await house.acquire(house.put("held"))
        monkeypatch.setattr(durable.os, "stat", stat)
        after = await house.acquire("s3://b/held")
        assert not refusals
        assert after.revision == before.revision

    run(tmp_path, story)


@pytest.mark.parametrize(("kind", "warned"), [("overlay", True), ("ext4", False)])
def test_a_store_in_the_container_s_own_layer_is_warned_of(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, kind: str, warned: bool
) -> None:
    monkeypatch.setattr(app, "file_system_of", lambda _path: kind)
    shelf = app.open_shelf(Settings.model_validate({"store": str(tmp_path / "store")}), Metrics("test"))
    shelf.index.close()
    shelf.layout.close()
    assert any("mount a volume" in record.message for record in caplog.records) == warned


def test_another_volume_under_the_same_index_is_reconciled(
    start: MakeDaemon, origin: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    daemon = start(index={"path": str(tmp_path / "local" / "index.db")})
    granted(acquire(daemon, origin))
    assert daemon.terminate() == 0
    shutil.move(daemon.store, tmp_path / "the-old-volume")
    daemon.start()
    assert granted(daemon.call("GET", "/v1/snapshots"))["snapshots"] in ([], None) or not any(
        one["state"] == "ready" for one in granted(daemon.call("GET", "/v1/snapshots"))["snapshots"]
    )
    assert tree_of(daemon, granted(acquire(daemon, origin))) == objects.read(origin / "one")


def test_times_in_the_future_mean_nothing(start: MakeDaemon, origin: pathlib.Path) -> None:
    ahead = time.time() + 400 * 86_400
    for file in origin.rglob("*"):
        os.utime(file, (ahead, ahead))
    daemon = start()
    lease = granted(acquire(daemon, origin))
    for file in daemon.store.rglob("*"):
        os.utime(file, (ahead, ahead), follow_symlinks=False)
    daemon.restart()
    again = granted(acquire(daemon, origin))
    assert again["revision"] == lease["revision"]
    outcomes = [row["outcome"] for row in rows(daemon, "SELECT outcome FROM v_requests ORDER BY id")]
    assert outcomes == ["miss", "hit"]
