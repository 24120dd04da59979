"""Load and save as b10-transfer's README has them, through a real daemon; what goes wrong is a status and a line in the log."""

from __future__ import annotations

import dataclasses
import fcntl
import http.server
import logging
import os
import pathlib
import random
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from hotshelf.archive import pack
from hotshelf.client import Client
from hotshelf.compile_cache import CacheError, CacheOperationInterrupted, OperationStatus, calls, vllm
from hotshelf.compile_cache import cache as module
from hotshelf.compile_cache.cache import Cache
from hotshelf.compile_cache.settings import Settings
from hotshelf_shared.bundle import BundleName
from tests.client.archives import TARS, archive_naming, archive_of
from tests.compiling.conftest import lay, tree_of
from tests.daemon.bundling import folder_of, forge, share
from tests.daemon.workers import Worker
from tests.daemon_process import Daemon
from tests.faults.test_disk import mounted
from tests.faults.test_fuzz import mutated
from tests.objects import Digest, noise

SUCCESS, SKIPPED, MISSING, ERROR = (
    OperationStatus.SUCCESS, OperationStatus.SKIPPED, OperationStatus.DOES_NOT_EXIST, OperationStatus.ERROR,
)  # fmt: skip
COMPILED = {"ab/cabc.py": b"code", "ab/cabc.so": noise("so", 5_000), "fxgraph/zz/entry": b"graph", "aotautograd/a": b"auto"}
FUZZED = 1_000


@pytest.fixture
def make(client: Client, name: BundleName, tmp_path: pathlib.Path) -> Callable[..., Cache]:
    """The cache of a process whose inductor directory is `folder`."""

    def make(folder: str = "inductor", *, of: BundleName = name, **settings: Any) -> Cache:
        (tmp_path / "work").mkdir(exist_ok=True)
        chosen = dataclasses.replace(Settings.read({"LOCAL_WORK_DIR": str(tmp_path / "work")}), **settings)
        return Cache(client, chosen, of, {"inductor": tmp_path / folder}, "inductor")

    return make


def litter(tmp_path: pathlib.Path) -> dict[str, bytes]:
    return {path: data for path, data in tree_of(tmp_path / "work").items() if not path.endswith(".lock")}


def answered(operation: Callable[[], OperationStatus]) -> OperationStatus:
    """As a caller of `load_compile_cache` gets it."""
    return calls._answer("carrying", operation)


def test_what_one_process_saves_another_one_loads(make: Callable[..., Cache], tmp_path: pathlib.Path) -> None:
    lay(tmp_path / "first", COMPILED)
    assert make("first").save() is SUCCESS
    assert make("second").load() is SUCCESS
    assert tree_of(tmp_path / "second") == COMPILED
    assert litter(tmp_path) == {}


def test_the_statuses_are_b10_transfer_s(make: Callable[..., Cache], tmp_path: pathlib.Path) -> None:
    lay(tmp_path / "first", COMPILED)
    assert make("other").load() is MISSING
    assert make("first").load() is SKIPPED  # it is there locally
    assert make("first").save() is SUCCESS
    assert make("first").save() is SKIPPED  # the shelf has it
    lay(tmp_path / "another", {"x/y": b"compiled otherwise"})
    assert make("another").save() is SKIPPED
    make("other").load()
    assert tree_of(tmp_path / "other") == COMPILED
    assert answered(make("nothing", of=BundleName.of("empty", "x")).save) is ERROR


def test_of_many_that_save_at_once_one_is_first_and_nobody_fails(make: Callable[..., Cache], tmp_path: pathlib.Path) -> None:
    found: list[OperationStatus] = []
    for number in range(6):
        lay(tmp_path / f"i{number}", {**COMPILED, "x/own": str(number).encode()})
    threads = [threading.Thread(target=lambda n=number: found.append(make(f"i{n}").save())) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(status.name for status in found) == ["SKIPPED"] * 5 + ["SUCCESS"]
    assert make("later").load() is SUCCESS
    assert COMPILED.items() <= tree_of(tmp_path / "later").items()


def test_two_models_do_not_shadow_each_other(make: Callable[..., Cache], tmp_path: pathlib.Path, name: BundleName) -> None:
    other = BundleName.of(name.environment_key, "other_model")
    lay(tmp_path / "first", COMPILED)
    lay(tmp_path / "second", {"x/y": b"another model"})
    assert make("first").save() is SUCCESS
    assert make("elsewhere", of=other).load() is MISSING
    assert make("second", of=other).save() is SUCCESS
    assert make("third", of=other).load() is SUCCESS
    assert tree_of(tmp_path / "third") == {"x/y": b"another model"}


def test_switched_off_or_without_a_daemon_it_is_an_error_and_never_raises(
    make: Callable[..., Cache], tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    lay(tmp_path / "first", COMPILED)
    off, alone = make("x", enabled=False), dataclasses.replace(make("first"), client=Client(tmp_path / "nobody", tmp_path))
    assert answered(off.load) is answered(off.save) is answered(alone.save) is ERROR
    assert answered(dataclasses.replace(make("nobody"), client=alone.client).load) is ERROR
    assert "BASETEN_FS_ENABLED" in caplog.text
    assert {record.name for record in caplog.records if record.levelno == logging.ERROR} == {"b10_transfer"}
    assert not alone.is_shared
    assert calls.info_of(alone)["b10fs_enabled"] is False


@pytest.mark.parametrize("hostile", [*TARS.values(), archive_naming(["inductor/a"], b"\0" * (64 << 20))], ids=[*TARS, "a bomb"])
def test_a_hostile_archive_is_never_merged(
    daemon: Daemon, make: Callable[..., Cache], name: BundleName, tmp_path: pathlib.Path, hostile: bytes
) -> None:
    share(Worker(daemon), hostile, f"/v1/bundles/{name}")
    assert answered(make().load) is ERROR
    assert not (tmp_path / "inductor").exists()
    assert litter(tmp_path) == {}


def test_a_bundle_of_something_else_is_no_success(
    daemon: Daemon, make: Callable[..., Cache], name: BundleName, tmp_path: pathlib.Path
) -> None:
    share(Worker(daemon), archive_of({"vllm/x": b"of another kind"}), f"/v1/bundles/{name}")
    assert answered(make().load) is ERROR
    assert not (tmp_path / "inductor").exists()


def test_a_tampered_bundle_is_not_there(
    daemon: Daemon, make: Callable[..., Cache], name: BundleName, tmp_path: pathlib.Path
) -> None:
    lay(tmp_path / "first", COMPILED)
    make("first").save()
    forge(folder_of(daemon, str(name)), size=1)
    assert make("second").load() is MISSING
    assert not (tmp_path / "second").exists()


def test_of_a_thousand_bundles_changed_after_they_were_leased_none_is_accepted(
    make: Callable[..., Cache], tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    """And of a thousand that were bound as they are, none is unpacked outside its directory. The former are refused unread."""
    caplog.set_level(logging.CRITICAL)
    cache, place = make("place/inductor"), tmp_path / "place"
    lay(tmp_path / "gathered", {f"inductor/{path}": data[:200] for path, data in COMPILED.items()})
    honest = pack(tmp_path / "gathered", tmp_path / "archive")
    data, chance, accepted = (tmp_path / "archive").read_bytes(), random.Random("bundles"), 0
    outside = {path: found for path, found in tree_of(tmp_path).items() if not path.startswith("work/")}
    for number, changed in enumerate(mutated(data, chance) for _ in range(2 * FUZZED)):
        for digest in [Digest.of(changed) if number < FUZZED else honest.digest]:
            found = answered(dataclasses.replace(cache, client=Leasing(tmp_path, changed, digest)).load)  # type: ignore[arg-type]
            if found is SUCCESS:
                accepted += digest == honest.digest and changed != data
                shutil.rmtree(place, ignore_errors=True)
            assert not place.exists()
            shutil.rmtree(tmp_path / "leased")
    assert accepted == 0
    assert {path: found for path, found in tree_of(tmp_path).items() if not path.startswith("work/")} == outside
    assert litter(tmp_path) == {}


class Leasing:
    """A client to whom the daemon leases `data` as the archive `digest`."""

    def __init__(self, folder: pathlib.Path, data: bytes, digest: str) -> None:
        self.path, self.files = folder / "leased", {"archive": Entry(digest, len(data))}
        lay(self.path, {"archive": data})

    def status(self) -> dict[str, object]:
        return {}

    def acquire(self, *_: object, **__: object) -> Leasing:
        return self

    def __enter__(self) -> Leasing:
        return self

    def __exit__(self, *_: object) -> None: ...


@dataclasses.dataclass
class Entry:
    digest: str
    size: int


def test_a_cache_over_the_limit_is_not_saved_and_not_loaded(make: Callable[..., Cache], tmp_path: pathlib.Path) -> None:
    lay(tmp_path / "first", COMPILED)
    assert answered(make("first", max_archive_bytes=4_000).save) is ERROR
    assert make("second").load() is MISSING
    assert make("first").save() is SUCCESS
    assert answered(make("second", max_archive_bytes=4_000).load) is ERROR
    assert not (tmp_path / "second").exists()


def test_no_more_are_saved_at_once_than_allowed(
    make: Callable[..., Cache], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lay(tmp_path / "first", COMPILED)
    monkeypatch.setattr(module, "SLOT_TIMEOUT_S", 0.0)
    private = tmp_path / "work" / f"hotshelf-compile-cache-{os.geteuid()}"
    lay(private, {"save-0.lock": b"", "save-1.lock": b""})
    private.chmod(0o700)
    with open(private / "save-0.lock") as first, open(private / "save-1.lock") as second:
        fcntl.flock(first, fcntl.LOCK_EX)
        fcntl.flock(second, fcntl.LOCK_EX)
        assert answered(make("first", max_saves=2).save) is ERROR
        assert make("first", max_saves=3).save() is SUCCESS


def test_a_work_directory_that_others_may_write_is_not_used(make: Callable[..., Cache], tmp_path: pathlib.Path) -> None:
    lay(tmp_path / "first", COMPILED)
    private = tmp_path / "work" / f"hotshelf-compile-cache-{os.geteuid()}"
    private.mkdir(parents=True, mode=0o777)
    private.chmod(0o777)
    assert answered(make("first").save) is ERROR
    private.rmdir()
    private.symlink_to(tmp_path)
    assert answered(make("first").save) is ERROR


@pytest.mark.root
@pytest.mark.needs("mount")
def test_a_full_disk_stops_it_and_leaves_nothing(make: Callable[..., Cache], tmp_path: pathlib.Path) -> None:
    large = {**COMPILED, "zz/large.so": noise("large", 6 << 20)}
    lay(tmp_path / "first", large)
    with mounted(tmp_path / "small", "-t", "tmpfs", "-o", "size=2m", "tmpfs") as small:
        with pytest.raises(CacheOperationInterrupted):
            make("first", work_dir=small).save()
        assert answered(make("first", work_dir=small).save) is ERROR
        assert make("first").save() is SUCCESS
        with pytest.raises(CacheOperationInterrupted):
            make("second", work_dir=small).load()
        with pytest.raises(CacheOperationInterrupted):
            make("small/inductor").load()
        assert make("third").load() is SUCCESS
        assert tree_of(tmp_path / "third") == large
        assert not (tmp_path / "second").exists()
        assert tree_of(small / "inductor").items() <= large.items()
        free = os.statvfs(small)
        assert [path for path in tree_of(small) if path.startswith("hotshelf") and not path.endswith(".lock")] == []
        assert free.f_bavail > 0


KILLED = """
import os, pathlib, signal, sys
from hotshelf import handing
from hotshelf.client import Client
from hotshelf.compile_cache.cache import Cache
from hotshelf.compile_cache.settings import Settings
from hotshelf_shared.bundle import BundleName
from hotshelf_shared.digest import Digest

def put_bundle(self, environment_key, graph_key, archive, *, timeout):
    if sys.argv[3] == "sent":
        with open(archive, "rb") as file:
            digest = Digest.of_fd(file.fileno())
        handing.put_blob(self.transport, digest, archive, timeout=timeout)
    os.kill(os.getpid(), signal.SIGKILL)

Client.put_bundle = put_bundle
name, where = BundleName.parse(sys.argv[1]), {"inductor": pathlib.Path(sys.argv[2])}
Cache(Client(), Settings.read(os.environ), name, where, "inductor").save()
"""


@pytest.mark.parametrize("when", ["packed", "sent"])
def test_a_save_that_is_killed_half_way_leaves_nothing_and_the_next_one_goes_well(
    daemon: Daemon, make: Callable[..., Cache], name: BundleName, tmp_path: pathlib.Path, when: str
) -> None:
    cache = make("first")
    lay(tmp_path / "first", COMPILED)
    argv = [sys.executable, "-c", KILLED, str(name), str(tmp_path / "first"), when]
    environment = {**daemon.environment, "LOCAL_WORK_DIR": str(tmp_path / "work")}
    assert subprocess.run(argv, env=environment, timeout=60).returncode == -9
    assert litter(tmp_path) != {}
    assert make("second").load() is MISSING
    assert cache.save() is SUCCESS
    assert litter(tmp_path) == {}
    assert make("second").load() is SUCCESS
    assert tree_of(tmp_path / "second") == COMPILED


def test_what_is_known_of_the_caches_is_told_under_b10_transfer_s_keys(
    make: Callable[..., Cache], name: BundleName, tmp_path: pathlib.Path
) -> None:
    cache = make("first")
    assert calls.info_of(cache) == {
        "environment_key": name.environment_key,
        "local_cache_exists": False,
        "b10fs_enabled": True,
        "b10fs_cache_exists": False,
    }
    lay(tmp_path / "first", COMPILED)
    cache.save()
    info, listed = calls.info_of(cache), calls.list_for(cache)
    assert info["local_cache_size_mb"] == sum(map(len, COMPILED.values())) / (1 << 20)
    assert 0 < info["b10fs_cache_size_mb"] < 1
    (mine,) = [one for one in listed["caches"] if one["is_current_environment"]]
    assert set(mine) == {"filename", "environment_key", "size_mb", "is_current_environment", "created_time"}
    assert (mine["filename"], mine["size_mb"]) == (str(name), info["b10fs_cache_size_mb"])
    assert abs(mine["created_time"] - (tmp_path / "first").stat().st_mtime) < 600
    assert listed["total_caches"] == len(listed["caches"])
    assert (listed["current_environment"], listed["current_cache_exists"]) == (name.environment_key, True)
    assert calls.list_for(make("first", of=BundleName.of("foreign", "x")))["current_cache_exists"] is False


# ---- vLLM


class Server:
    """vLLM's: nobody listens, then it answers 503 for a while, then it is ready, and has compiled."""

    def __init__(self, compiled: pathlib.Path, tree: dict[str, bytes], *, busy: int) -> None:
        server = self
        self.asked = 0

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.asked += 1
                if server.asked > busy:
                    lay(compiled, tree)
                self.send_response(200 if server.asked > busy and self.path == "/health" else 503)
                self.end_headers()

            def log_message(self, *_: object) -> None: ...

        self._server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/health"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def serving(tmp_path: pathlib.Path) -> Iterator[Server]:
    server = Server(tmp_path / "v1", {"hash/rank_0_0/graph": b"compiled by vllm"}, busy=2)
    yield server
    server.stop()


def test_what_vllm_compiled_is_saved_once_it_is_ready_and_is_there_before_the_next_one_starts(
    make: Callable[..., Cache], serving: Server, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm, "_FIRST_PAUSE_S", 0.01)

    def of(folder: str) -> Cache:
        where = {"inductor": tmp_path / f"{folder}-inductor", "vllm": tmp_path / folder}
        return dataclasses.replace(make(), where=where, main="vllm")

    assert vllm.serve(of("v1"), url=serving.url, timeout_s=30) is SUCCESS
    assert serving.asked == 3
    assert of("v2").load() is SUCCESS
    assert tree_of(tmp_path / "v2") == {"hash/rank_0_0/graph": b"compiled by vllm"}
    assert vllm.serve(of("v3"), url=serving.url, timeout_s=30) is SKIPPED


def test_without_anything_of_vllm_s_nothing_is_saved_for_it(make: Callable[..., Cache], tmp_path: pathlib.Path) -> None:
    where = {"inductor": lay(tmp_path / "inductor", COMPILED), "vllm": tmp_path / "none"}
    cache = dataclasses.replace(make(), where=where, main="vllm")
    assert answered(cache.save) is ERROR
    assert cache.load() is MISSING


def test_a_server_that_never_gets_ready_is_given_up_and_nothing_is_saved(
    make: Callable[..., Cache], tmp_path: pathlib.Path
) -> None:
    lay(tmp_path / "inductor", COMPILED)
    with pytest.raises(CacheError, match="not ready"):
        vllm.serve(make(), url="http://127.0.0.1:9/health", timeout_s=0.1)
    assert make("other").load() is MISSING


def test_vllm_s_directory_is_where_vllm_is_told() -> None:
    assert vllm.folder({"VLLM_CACHE_ROOT": "/v"}) == pathlib.Path("/v/torch_compile_cache")
    assert vllm.folder({"XDG_CACHE_HOME": "/x"}) == pathlib.Path("/x/vllm/torch_compile_cache")
    assert vllm.folder({}) == pathlib.Path.home() / ".cache/vllm/torch_compile_cache"
