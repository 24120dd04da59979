"""Rows 53 to 76 and 100 to 106 as far as they need a real process: stopped, killed again and again, crowded, forked."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import pathlib
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import hotshelf
from tests import objects
from tests.daemon.looking import granted, names_in, refused, rows, tree_of, value
from tests.daemon_process import Daemon, UnixConnection
from tests.faults.invariants import visible_wrongs, wrongs_after_restart
from tests.faults.origin_cases import ends
from tests.faults.scripted_origin import ScriptedOrigin
from tests.faults.test_origin_cases import SEGMENT, settings
from tests.servers.child import clean_environment
from tests.waiting import wait_until

MakeDaemon = Callable[..., Daemon]
ROOT = pathlib.Path(__file__).parents[2]
TREE = objects.model("process", unet=6 * SEGMENT + 1, text_encoder=9_000, vae=9_000)


@pytest.fixture
def origin() -> Iterator[ScriptedOrigin]:
    with ScriptedOrigin() as server:
        server.objects |= {f"m/{path}": data for path, data in TREE.items()}
        yield server


@pytest.fixture
def start(make_daemon: MakeDaemon, origin: ScriptedOrigin) -> MakeDaemon:
    def started(name: str = "daemon", **more: Any) -> Daemon:
        fetch = {"segment_bytes": SEGMENT, "connections": 2}
        return make_daemon(name, origins={"scripted": settings(origin.endpoint_url)}, fetch=fetch, revalidate_s=3_600, **more)

    return started


# ---- the process


def test_every_descriptor_closes_on_exec(start: MakeDaemon, origin: ScriptedOrigin) -> None:
    daemon = start()
    granted(daemon.acquire("s3://weights/m"))
    folder = pathlib.Path(f"/proc/{daemon.pid}/fdinfo")
    inherited = []
    for entry in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):
            flags = re.search(r"flags:\s+(\d+)", entry.read_text())
            if flags is not None and not int(flags[1], 8) & os.O_CLOEXEC:
                inherited.append(int(entry.name))
    assert set(inherited) <= {0, 1, 2}


def test_a_daemon_that_was_stopped_for_longer_than_leases_live_keeps_them(start: MakeDaemon) -> None:
    daemon = start(lease_ttl_s=2, lease_eof_s=60)
    lease = hotshelf.Client(socket=str(daemon.socket), store=str(daemon.store)).acquire("s3://weights/m")
    with daemon.frozen():
        threading.Event().wait(5)  # the length of the stop is the point
    lasting = time.monotonic() + 3
    while time.monotonic() < lasting:
        assert value(daemon, "SELECT count(*) FROM v_leases") == 1
        threading.Event().wait(0.1)
    lease.release()
    assert "stopped for a while" in daemon.log_text


def test_a_daemon_that_crashes_in_a_loop_leaves_no_more_than_one_download_behind(
    start: MakeDaemon, origin: ScriptedOrigin
) -> None:
    origin.misdeed(ends("stall"), prefix="m/unet/diff", when=lambda ask: (ask.range or (0, 0))[0] >= 2 * SEGMENT)
    daemon, lengths = start(), []
    for _ in range(6):
        asking = threading.Thread(target=broken_off, args=(daemon,))
        asked = len(origin.asked_for("m/unet/diff", "GET"))
        asking.start()
        wait_until(lambda asked=asked: len(origin.asked_for("m/unet/diff", "GET")) > asked)
        daemon.kill9()
        asking.join()
        daemon.start()
        lengths.append(len(names_in(daemon, "ingest")))
        assert names_in(daemon, "trash") == names_in(daemon, "quarantine") == []
    assert max(lengths) <= len(TREE)
    origin.heal()
    assert tree_of(daemon, granted(daemon.acquire("s3://weights/m"))) == TREE
    assert names_in(daemon, "ingest") == []


def broken_off(daemon: Daemon) -> None:
    with contextlib.suppress(OSError, http.client.HTTPException):  # the daemon is killed under it
        daemon.acquire("s3://weights/m")


@pytest.mark.root
def test_a_daemon_that_outgrows_its_memory_is_killed_and_the_next_one_goes_on(
    start: MakeDaemon, origin: ScriptedOrigin
) -> None:
    group = pathlib.Path("/sys/fs/cgroup/memory") / f"hotshelf-test-{os.getpid()}"
    daemon = start()
    origin.misdeed(ends("stall"), prefix="m/unet/diff", when=lambda ask: (ask.range or (0, 0))[0] >= 2 * SEGMENT)
    asking = threading.Thread(target=broken_off, args=(daemon,))
    asking.start()
    wait_until(lambda: rows(daemon, "SELECT * FROM v_transfers WHERE bytes_done > 0"))
    if not squeezed(group, daemon.pid):  # no memory cgroup to write to here: the kill is the same, its sender is not
        os.kill(daemon.pid, signal.SIGKILL)
    assert daemon.wait() == -signal.SIGKILL
    asking.join()
    with contextlib.suppress(OSError):
        group.rmdir()
    origin.heal()
    daemon.start()
    assert tree_of(daemon, granted(daemon.acquire("s3://weights/m"))) == TREE
    assert list(visible_wrongs(daemon.store)) == []


def squeezed(group: pathlib.Path, pid: int) -> bool:
    """Whether the kernel was made to run out of memory for this process."""
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(400 << 20))
        (group / "cgroup.procs").write_text(str(pid))
        (group / "memory.force_empty").write_text("0")
        (group / "memory.limit_in_bytes").write_text(str(1 << 20))
    except OSError:
        return False
    try:
        wait_until(lambda: "oom_kill 1" in (group / "memory.oom_control").read_text(), timeout_s=5)
    except (AssertionError, OSError):
        return False
    return True


# ---- the crowd


@contextlib.contextmanager
def inside(daemon: Daemon) -> Iterator[None]:
    """A connection that was let in, and stays."""
    with contextlib.closing(UnixConnection(daemon.socket)) as connection:

        def let_in() -> bool:
            connection.request("GET", "/v1/health")
            response = connection.getresponse()
            response.read()
            return response.status == 200

        wait_until(let_in)
        yield


def test_more_connections_than_allowed_are_shed_and_the_others_served(start: MakeDaemon) -> None:
    daemon = start(max_connections=20)
    with contextlib.ExitStack() as idle:
        for _ in range(20):
            idle.enter_context(inside(daemon))
        reply = daemon.acquire("s3://weights/m")
        problem = refused(reply, "daemon_unavailable")
        assert problem["retryable"]
        assert reply.headers["retry-after"] == "1"
        assert "max_connections" in problem["hint"]
        idle.pop_all().close()
    with hotshelf.Client(socket=str(daemon.socket), store=str(daemon.store)).acquire("s3://weights/m") as lease:
        assert objects.read(lease.path) == TREE


def test_a_client_that_was_turned_away_before_it_asked_can_still_read_why(start: MakeDaemon) -> None:
    daemon = start(max_connections=1)
    with inside(daemon), contextlib.closing(UnixConnection(daemon.socket)) as late:
        late.connect()
        answered = select.poll()
        answered.register(late.sock, select.POLLRDHUP)
        assert answered.poll(30_000)  # all that will be said was said before the question
        late.request("POST", "/v1/leases", json.dumps({"source": "s3://weights/m"}), {"Content-Type": "application/json"})
        assert late.getresponse().status == 503


def test_a_thousand_idle_connections_keep_nobody_from_being_served(start: MakeDaemon) -> None:
    daemon = start(max_connections=1_100)
    with contextlib.ExitStack() as idle:
        for _ in range(1_000):
            connection = idle.enter_context(socket.socket(socket.AF_UNIX))
            connection.connect(str(daemon.socket))
        assert tree_of(daemon, granted(daemon.acquire("s3://weights/m"))) == TREE
    wait_until(lambda: len(os.listdir(f"/proc/{daemon.pid}/fd")) < 100, what="their descriptors to be closed")


def test_a_client_that_does_not_read_holds_up_only_itself(start: MakeDaemon, origin: ScriptedOrigin) -> None:
    daemon = start()
    origin.misdeed(ends("stall"), prefix="m/unet/diff", times=1)
    with contextlib.closing(UnixConnection(daemon.socket)) as deaf:
        deaf.connect()
        deaf.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        deaf.request("POST", "/v1/leases", json.dumps({"source": "s3://weights/m"}), {"Accept": "application/x-ndjson"})
        wait_until(lambda: origin.asked_for("m/unet/diff", "GET"))
        origin.heal()
        assert tree_of(daemon, granted(daemon.acquire("s3://weights/m"))) == TREE


def test_a_path_that_is_open_outlives_the_eviction_of_its_snapshot(start: MakeDaemon) -> None:
    daemon = start()
    lease = granted(daemon.acquire("s3://weights/m"))
    path = daemon.store / lease["path"] / "unet/diffusion_pytorch_model.safetensors"
    with path.open("rb") as opened:
        refused(daemon.call("DELETE", f"/v1/snapshots/{lease['revision']}"), "in_use")
        daemon.call("DELETE", f"/v1/leases/{lease['id']}")
        granted(daemon.call("DELETE", f"/v1/snapshots/{lease['revision']}"))
        assert not path.exists()
        assert opened.read() == TREE["unet/diffusion_pytorch_model.safetensors"]


def test_evicting_collecting_and_acquiring_at_once_never_breaks_a_lease(start: MakeDaemon, origin: ScriptedOrigin) -> None:
    """Rows 101 to 103: what is granted is there, whatever goes on beside it."""
    daemon = start()
    other = objects.model("other", unet=2 * SEGMENT, text_encoder=9_000, vae=9_000)
    origin.objects |= {f"n/{path}": data for path, data in other.items()}
    until, wrong = time.monotonic() + 4, list[str]()

    def work(name: str, tree: objects.Tree) -> None:
        while time.monotonic() < until:
            reply = daemon.acquire(f"s3://weights/{name}")
            if reply.status != 200:
                wrong.append(str(reply.body))
                continue
            if tree_of(daemon, reply.body) != tree:
                wrong.append(f"{name} is not what it was leased as")
            daemon.call("DELETE", f"/v1/leases/{reply.body['id']}")

    def destroy() -> None:
        while time.monotonic() < until:
            for tree in (TREE, other):
                daemon.call("DELETE", f"/v1/snapshots/{objects.manifest_of(tree).revision}")
            daemon.call("POST", "/v1/collect", {})
            daemon.call("POST", "/v1/verify", {})

    threads = [threading.Thread(target=work, args=pair) for pair in (("m", TREE), ("n", other)) * 2]
    threads.append(threading.Thread(target=destroy))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert names_in(daemon, "quarantine") == []
    assert '"defect"' not in daemon.log_text
    daemon.terminate()
    assert list(wrongs_after_restart(daemon.store, [])) == []


# ---- two daemons where the lock means nothing

UNLOCKED = """
import fcntl, sys
fcntl.flock = lambda _fd, _how: None
from hotshelf_daemon.__main__ import main
sys.exit(main())
"""


def is_up(daemon: Daemon) -> bool:
    try:
        return daemon.is_healthy()
    except OSError:
        return False


def wrong_blobs(store: pathlib.Path) -> list[str]:
    """Names that are another's bytes; each daemon may well put aside what the other one brought."""
    wrong = []
    for blob in (store / "blobs" / "sha256").glob("*/*"):
        with contextlib.suppress(FileNotFoundError):
            if objects.Digest.of(blob.read_bytes()).hex != blob.name:
                wrong.append(blob.name)
    return wrong


def test_two_daemons_on_one_store_without_a_lock_show_nobody_wrong_bytes(
    start: MakeDaemon, origin: ScriptedOrigin, tmp_path: pathlib.Path
) -> None:
    first = start()
    second = start("second", start=False, store=first.store, index={"path": str(tmp_path / "second.db")})
    second.folder.mkdir(parents=True, exist_ok=True)
    config = second.folder / "hotshelf.yaml"
    config.write_text(json.dumps(second.settings))
    argv = [
        sys.executable,
        "-c",
        UNLOCKED,
        "--config",
        str(config),
        "--store",
        str(first.store),
        "--socket",
        str(second.socket),
    ]
    with subprocess.Popen(argv, env=clean_environment(), stderr=subprocess.DEVNULL) as process:
        try:
            wait_until(second.socket.exists)
            wait_until(lambda: is_up(second), what="the second daemon to answer")
            replies: list[Any] = []
            askers = [
                threading.Thread(target=lambda daemon=daemon: replies.append(daemon.acquire("s3://weights/m")))  # type: ignore[misc]
                for daemon in (first, second) * 3
            ]
            for asker in askers:
                asker.start()
            while any(asker.is_alive() for asker in askers):
                assert wrong_blobs(first.store) == []
            assert wrong_blobs(first.store) == []
            for reply in replies:
                if reply.status == 200:
                    for path, data in TREE.items():
                        with contextlib.suppress(FileNotFoundError):
                            assert (first.store / reply.body["path"] / path).read_bytes() == data
            assert any(reply.status == 200 for reply in replies)
        finally:
            process.kill()
