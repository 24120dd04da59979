"""What a worker sees of the daemon, through everything that can happen to it."""

from __future__ import annotations

import gc
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import hotshelf
from hotshelf.client import Client
from hotshelf.transport import MemoryTransport, Reply, Request
from hotshelf_shared.digest import Digest
from hotshelf_shared.errors import (
    AccessDenied,
    BadConfiguration,
    DaemonUnavailable,
    HotshelfError,
    InvalidRequest,
    NotFound,
    Timeout,
)
from hotshelf_shared.manifest import FileEntry
from hotshelf_shared.wire import Progress, Skipped

from .fakes import PATIENCE_S, FakeDaemon, HangUp, UnixServer


class TestAcquire:
    def test_a_lease_shows_the_files_and_frees_them(self, client: Client, daemon: FakeDaemon) -> None:
        with client.acquire("s3://weights/sdxl") as lease:
            assert (lease.path / "model.safetensors").read_bytes() == b"s3://weights/sdxl"
            digest = Digest.of(b"s3://weights/sdxl")
            assert (lease.revision, lease.kind, lease.source) == (digest, "tree", "s3://weights/sdxl")
            assert lease.files == {"model.safetensors": FileEntry(digest, 17)}
            assert lease.skipped == (Skipped("evil.py", "it executes"),)
            assert lease.id in daemon.leases
        assert lease.released
        assert daemon.leases == {}

    def test_what_was_asked_for_is_what_is_sent(self, client: Client, daemon: FakeDaemon) -> None:
        client.acquire("sdxl", allow_patterns=("*.json",), ignore_patterns="*.bin", timeout=30).release()
        body = daemon.asked("POST", "/v1/leases").body
        assert 29 < body.pop("timeout_s") <= 30
        assert body == {
            "source": "sdxl",
            "allow_patterns": ["*.json"],
            "ignore_patterns": ["*.bin"],
            "client": client.keeper.client,
        }

    def test_several_sources_come_together_and_go_together(self, client: Client, daemon: FakeDaemon) -> None:
        sources = ["sdxl", {"source": "style", "allow_patterns": ["*.safetensors"]}]
        with client.acquire(sources) as leases:
            assert [lease.source for lease in leases] == ["sdxl", "style"]
            assert leases[1].path.is_dir()
            assert len(daemon.leases) == 2
        assert daemon.leases == {}
        assert daemon.asked("POST", "/v1/leases").body["sources"] == sources

    def test_progress_is_reported(self, client: Client) -> None:
        seen: list[Progress] = []
        client.acquire("sdxl", on_progress=seen.append).release()
        assert [(one.phase, one.bytes_done, one.bytes_total) for one in seen] == [("fetching", 3, 6)]

    def test_a_failing_progress_callback_ends_the_wait(self, client: Client, server: UnixServer, daemon: FakeDaemon) -> None:
        released = threading.Event()

        def slowly(request: Request) -> Reply:
            def lines() -> Any:
                yield {"event": "progress", "phase": "fetching"}
                released.wait(PATIENCE_S)

            return Reply(lines=lines())

        def fail(_: Progress) -> None:
            raise RuntimeError("no")

        daemon.acquires.append(slowly)
        with pytest.raises(RuntimeError, match="no"):
            client.acquire("sdxl", on_progress=fail)
        released.set()
        server.closed.get(timeout=PATIENCE_S)

    def test_a_problem_reaches_the_caller_at_once(self, client: Client, daemon: FakeDaemon) -> None:
        def refuse(_: Request) -> Reply:
            raise AccessDenied("uid 7 is not among socket_uids", hint="ask the operator")

        daemon.acquires.append(refuse)
        with pytest.raises(AccessDenied, match="uid 7") as caught:
            client.acquire("sdxl")
        assert caught.value.hint == "ask the operator"

    @pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf")])
    def test_a_senseless_timeout_is_refused(self, client: Client, timeout: float) -> None:
        with pytest.raises(InvalidRequest, match="timeout"):
            client.acquire("sdxl", timeout=timeout)

    def test_no_timeout_is_the_longest_one(self, client: Client, daemon: FakeDaemon) -> None:
        client.acquire("sdxl", timeout=None).release()
        assert daemon.asked("POST", "/v1/leases").body["timeout_s"] > 86_000

    def test_an_answer_that_is_no_lease_blames_the_versions(self, client: Client, daemon: FakeDaemon) -> None:
        daemon.acquires.append(lambda _: Reply(lines=[{"event": "ready", "lease": {"id": "x"}}]))
        with pytest.raises(HotshelfError) as caught:
            client.acquire("sdxl")
        assert "versions" in caught.value.hint


class TestTheDaemonComesAndGoes:
    def test_a_daemon_that_comes_late_is_waited_for(self, client: Client, server: UnixServer, daemon: FakeDaemon) -> None:
        server.stop()
        waiting = threading.Timer(0.2, server.start)
        waiting.start()
        client.acquire("sdxl", timeout=PATIENCE_S).release()
        waiting.join()

    def test_a_daemon_that_never_comes_is_named_by_its_socket(self, tmp_path: Path) -> None:
        began = time.monotonic()
        with pytest.raises(DaemonUnavailable, match=str(tmp_path / "s")) as caught:
            Client(tmp_path / "s").acquire("sdxl", timeout=0.3)
        assert caught.value.exit_code == 69
        assert 0.3 <= time.monotonic() - began < 5

    def test_a_restart_in_the_middle_of_a_wait_is_survived(self, client: Client, daemon: FakeDaemon) -> None:
        def die(_: Request) -> Reply:
            def lines() -> Any:
                yield {"event": "progress", "phase": "fetching", "bytes_done": 1, "bytes_total": 2}
                raise HangUp

            return Reply(lines=lines())

        def drain(_: Request) -> Reply:
            raise DaemonUnavailable("draining", retry_after_s=0.01)

        def vanish(_: Request) -> Reply:
            raise HangUp

        daemon.acquires += [die, drain, vanish]
        with client.acquire("sdxl", timeout=PATIENCE_S) as lease:
            assert lease.path.is_dir()
        bodies = [daemon.asked("POST", "/v1/leases").body for _ in range(4)]
        assert sorted((body["timeout_s"] for body in bodies), reverse=True) == [body["timeout_s"] for body in bodies]

    def test_a_daemon_that_says_nothing_is_a_timeout(
        self, client: Client, daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("hotshelf.acquisition.GRACE_S", 0.1)
        done = threading.Event()

        def stall(_: Request) -> Reply:
            done.wait(PATIENCE_S)
            raise HangUp

        daemon.acquires.append(stall)
        with pytest.raises(Timeout):
            client.acquire("sdxl", timeout=0.2)
        done.set()

    def test_other_verbs_do_not_wait_for_a_daemon(self, tmp_path: Path) -> None:
        with pytest.raises(DaemonUnavailable, match=str(tmp_path / "s")):
            Client(tmp_path / "s").status()


class TestWhereTheFilesAre:
    def test_the_argument_goes_before_the_environment(
        self, server: UnixServer, daemon: FakeDaemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "mount").symlink_to(tmp_path / "shelf")
        (tmp_path / "shelf").mkdir()
        monkeypatch.setenv("HOTSHELF_STORE", str(tmp_path / "nowhere"))
        with Client(server.path, store=tmp_path / "mount").acquire("sdxl") as lease:
            assert lease.path.parent.parent == tmp_path / "mount"

    @pytest.mark.parametrize("name", ["HOTSHELF_STORE", "PIPELINE_STORE"])
    def test_the_environment_goes_before_the_daemons_own_path(
        self, client: Client, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "shelf").mkdir()
        (tmp_path / "mount").symlink_to(tmp_path / "shelf")
        monkeypatch.setenv(name, str(tmp_path / "mount"))
        with client.acquire("sdxl") as lease:
            assert lease.path.parent.parent == tmp_path / "mount"

    def test_a_store_that_is_not_mounted_here_is_said_so_and_nothing_stays_held(
        self, client: Client, daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HOTSHELF_STORE", "/nowhere")
        with pytest.raises(BadConfiguration, match="/nowhere/snapshots/") as caught:
            client.acquire("sdxl")
        assert "HOTSHELF_STORE" in caught.value.hint
        assert daemon.leases == {}

    def test_a_snapshot_removed_by_hand_is_asked_for_once_more(self, client: Client, daemon: FakeDaemon) -> None:
        def removed(request: Request) -> Reply:
            reply = daemon.grant(request)
            folder = daemon.store / "snapshots" / Digest.of(b"sdxl").hex
            (folder / "model.safetensors").unlink()
            folder.rmdir()
            return reply

        daemon.acquires.append(removed)
        with client.acquire("sdxl") as lease:
            assert (lease.path / "model.safetensors").exists()
            assert list(daemon.leases) == [lease.id]

    def test_the_socket_is_found_in_the_environment_when_first_used(
        self, server: UnixServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        client = Client()
        monkeypatch.setenv("HOTSHELF_SOCKET", str(server.path))
        client.acquire("sdxl").release()


class TestLettingGo:
    def test_releasing_twice_frees_once(self, client: Client, daemon: FakeDaemon) -> None:
        lease = client.acquire("sdxl")
        lease.release()
        lease.release()
        assert daemon.freed.get(timeout=PATIENCE_S) == lease.id
        assert daemon.freed.empty()

    def test_a_forgotten_lease_is_freed(self, client: Client, daemon: FakeDaemon) -> None:
        lease_id = client.acquire("sdxl").id
        gc.collect()
        assert daemon.freed.get(timeout=PATIENCE_S) == lease_id

    def test_releasing_while_the_daemon_is_away_is_no_error(self, client: Client, server: UnixServer) -> None:
        lease = client.acquire("sdxl")
        server.stop()
        lease.release()
        assert lease.released

    def test_a_detached_lease_names_no_client_and_outlives_its_owner(self, client: Client, daemon: FakeDaemon) -> None:
        lease = client.acquire("sdxl", hold_s=3600)
        body = daemon.asked("POST", "/v1/leases").body
        assert (body["hold_s"], "client" in body) == (3600, False)
        lease_id = lease.id
        del lease
        gc.collect()
        assert lease_id in daemon.leases

    def test_a_detached_lease_can_be_released(self, client: Client, daemon: FakeDaemon) -> None:
        client.acquire("sdxl", detached=True).release()
        assert daemon.leases == {}


class TestTheOtherVerbs:
    @pytest.mark.parametrize(
        ("verb", "method", "path"),
        [
            ("pin", "PUT", "/v1/pins/s3%3A%2F%2Fweights%2Fa%20b"),
            ("unpin", "DELETE", "/v1/pins/s3%3A%2F%2Fweights%2Fa%20b"),
            ("evict", "DELETE", "/v1/snapshots/s3%3A%2F%2Fweights%2Fa%20b"),
            ("snapshot", "GET", "/v1/snapshots/s3%3A%2F%2Fweights%2Fa%20b"),
        ],
    )
    def test_a_source_is_one_encoded_part_of_the_path(
        self, client: Client, daemon: FakeDaemon, verb: str, method: str, path: str
    ) -> None:
        daemon.looks[method, path] = lambda _: Reply({"done": verb})
        assert getattr(client, verb)("s3://weights/a b") == {"done": verb}

    def test_lists_are_lists(self, client: Client, daemon: FakeDaemon) -> None:
        for name in ("snapshots", "pins", "transfers"):
            daemon.looks["GET", f"/v1/{name}"] = lambda _, name=name: Reply({name: [{"n": 1}]})
            assert getattr(client, name)() == [{"n": 1}]

    def test_an_answer_of_another_shape_is_a_typed_error(self, client: Client, daemon: FakeDaemon) -> None:
        daemon.looks["GET", "/v1/snapshots"] = lambda _: Reply({"snapshots": "none"})
        daemon.looks["GET", "/v1/status"] = lambda _: Reply([1])
        daemon.looks["POST", "/v1/refresh"] = lambda _: Reply(lines=[{"event": "ready"}])
        for look in (client.snapshots, client.status, lambda: client.refresh("sdxl")):
            with pytest.raises(HotshelfError):
                look()

    def test_a_refresh_waits_for_a_daemon_that_is_restarted(self, client: Client, daemon: FakeDaemon) -> None:
        def once(_: Request) -> Reply:
            daemon.looks["POST", "/v1/refresh"] = lambda _: Reply(lines=[{"event": "ready", "refreshed": {"changed": True}}])
            raise HangUp

        daemon.looks["POST", "/v1/refresh"] = once
        assert client.refresh("sdxl", timeout=30) == {"changed": True}

    def test_a_name_is_verified_by_its_revision(self, client: Client, daemon: FakeDaemon) -> None:
        daemon.looks["GET", "/v1/snapshots/sdxl"] = lambda _: Reply({"revision": "sha256:ab"})
        daemon.looks["POST", "/v1/verify"] = lambda request: Reply({"checked": 1, "asked": request.body})
        assert client.verify("sdxl")["asked"] == {"revision": "sha256:ab"}
        assert client.verify()["asked"] == {}

    def test_what_is_not_there_is_not_found(self, client: Client) -> None:
        with pytest.raises(NotFound):
            client.evict("sdxl")

    def test_the_module_functions_use_one_client(self, server: UnixServer, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOTSHELF_SOCKET", str(server.path))
        monkeypatch.setattr("hotshelf.client.default._transport", None)
        monkeypatch.setattr("hotshelf.client.default._keepers", {})
        with hotshelf.acquire("sdxl") as lease:
            assert lease.path.is_dir()


def test_the_client_works_over_any_transport(daemon: FakeDaemon) -> None:
    with Client(transport=MemoryTransport(daemon)).acquire("sdxl") as lease:
        assert (lease.path / "model.safetensors").read_bytes() == b"sdxl"
