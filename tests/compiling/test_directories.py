"""Out of inductor's directories and into others: whole files only, and nothing that is there is touched."""

from __future__ import annotations

import fcntl
import json
import os
import pathlib
import stat
import sys
import types

import pytest

from hotshelf.compiling import Reuse, counters, gather, merge, places
from hotshelf_shared.errors import HotshelfError
from tests.compiling.conftest import lay, tree_of

CACHE = {"ab/cabc.py": b"code", "ab/cabc.so": b"\x7fELF", "fxgraph/zz/fzz/entry": b"graph", "aotautograd/a/entry": b"auto"}


@pytest.fixture
def cache(tmp_path: pathlib.Path) -> pathlib.Path:
    return lay(tmp_path / "inductor", CACHE)


def gathered(tmp_path: pathlib.Path, cache: pathlib.Path) -> pathlib.Path:
    gather(tmp_path / "gathered", {"inductor": cache})
    return tmp_path / "gathered"


def test_what_was_gathered_is_merged_into_another_directory(tmp_path: pathlib.Path, cache: pathlib.Path) -> None:
    taken = gather(tmp_path / "gathered", {"inductor": cache})
    assert (taken.files, taken.size) == (len(CACHE), sum(map(len, CACHE.values())))
    assert merge(tmp_path / "gathered", {"inductor": tmp_path / "other"}) == len(CACHE)
    assert tree_of(tmp_path / "other") == CACHE


def test_merging_again_adds_nothing_and_replaces_nothing(tmp_path: pathlib.Path, cache: pathlib.Path) -> None:
    other = lay(tmp_path / "other", {"ab/cabc.py": b"mine", "cd/mine.py": b"mine too"})
    where = {"inductor": other}
    assert merge(gathered(tmp_path, cache), where) == len(CACHE) - 1
    assert merge(tmp_path / "gathered", where) == 0
    assert tree_of(other) == {**CACHE, "ab/cabc.py": b"mine", "cd/mine.py": b"mine too"}


def test_a_directory_that_is_not_there_is_empty(tmp_path: pathlib.Path) -> None:
    assert gather(tmp_path / "gathered", {"inductor": tmp_path / "none"}).files == 0
    assert merge(tmp_path / "gathered", {"inductor": tmp_path / "other"}) == 0


def test_a_directory_that_is_a_link_to_another_disk_say_is_taken(tmp_path: pathlib.Path, cache: pathlib.Path) -> None:
    (tmp_path / "linked").symlink_to(cache)
    assert gather(tmp_path / "gathered", {"inductor": tmp_path / "linked"}).files == len(CACHE)


def test_locks_links_pipes_and_temporary_files_stay_behind(tmp_path: pathlib.Path, cache: pathlib.Path) -> None:
    secret = lay(tmp_path / "secret", {"key": b"secret"})
    (cache / "out").symlink_to(secret)
    (cache / "ab/link.so").symlink_to(secret / "key")
    os.mkfifo(cache / "ab/pipe")
    lay(cache, {"locks/cabc.lock": b"", "ab/.1.2.tmp": b"half", "ab/x.tmp": b"half"})
    assert tree_of(gathered(tmp_path, cache)) == {f"inductor/{name}": data for name, data in CACHE.items()}


def test_what_is_being_compiled_meanwhile_is_left_out(tmp_path: pathlib.Path, cache: pathlib.Path) -> None:
    lay(cache, {"ef/cefg.main.so": b"\x7fEL", "locks/cefg.main.lock": b"", "locks/cabc.lock": b""})
    with open(cache / "locks/cefg.main.lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "inductor/ef/cefg.main.so" not in tree_of(gathered(tmp_path, cache))
    gather(tmp_path / "later", {"inductor": cache})
    assert "inductor/ef/cefg.main.so" in tree_of(tmp_path / "later")


def test_what_is_written_after_the_beginning_is_left_out(tmp_path: pathlib.Path, cache: pathlib.Path) -> None:
    ahead = cache.stat().st_mtime + 3600
    os.utime(cache / "ab/cabc.so", (ahead, ahead))
    assert set(tree_of(gathered(tmp_path, cache))) == {f"inductor/{name}" for name in CACHE} - {"inductor/ab/cabc.so"}


def test_a_link_in_the_place_of_a_folder_is_not_followed(tmp_path: pathlib.Path, cache: pathlib.Path) -> None:
    elsewhere = lay(tmp_path / "elsewhere", {})
    elsewhere.mkdir()
    other = tmp_path / "other"
    other.mkdir()
    (other / "ab").symlink_to(elsewhere)
    with pytest.raises(HotshelfError):
        merge(gathered(tmp_path, cache), {"inductor": other})
    assert tree_of(elsewhere) == {}


def test_a_link_in_the_place_of_a_file_stays_what_it_is(tmp_path: pathlib.Path, cache: pathlib.Path) -> None:
    target = lay(tmp_path / "elsewhere", {"file": b"theirs"}) / "file"
    other = lay(tmp_path / "other", {"ab/other": b""})
    (other / "ab/cabc.so").symlink_to(target)
    merge(gathered(tmp_path, cache), {"inductor": other})
    assert target.read_bytes() == b"theirs"
    assert stat.S_ISLNK((other / "ab/cabc.so").lstat().st_mode)


@pytest.mark.root
def test_another_disk_gets_copies(tmp_path: pathlib.Path, cache: pathlib.Path) -> None:
    shm = pathlib.Path("/dev/shm") / f"hotshelf-{os.getpid()}"
    if shm.parent.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("/dev/shm is no other disk here")
    try:
        shm.mkdir()
        gather(shm / "gathered", {"inductor": cache})
        assert tree_of(shm / "gathered/inductor") == CACHE
        assert merge(shm / "gathered", {"inductor": tmp_path / "other"}) == len(CACHE)
        assert tree_of(tmp_path / "other") == CACHE
        assert merge(shm / "gathered", {"inductor": tmp_path / "other"}) == 0
    finally:
        import shutil

        shutil.rmtree(shm)


def test_triton_s_groups_name_the_files_where_they_lie_now(tmp_path: pathlib.Path) -> None:
    group = {"child_paths": {"k.cubin": "/old/triton/0/HASH/k.cubin"}}
    cache = lay(tmp_path / "cache", {
        "triton/0/HASH/__grp__k.json": json.dumps(group).encode(), "triton/0/HASH/k.cubin": b"cubin",
        "triton/0/OTHER/__grp__odd.json": b"[1, 2]",
    })  # fmt: skip
    gather(tmp_path / "gathered", {"inductor": cache})
    merge(tmp_path / "gathered", {"inductor": tmp_path / "new"})
    home = tmp_path / "new/triton/0/HASH"
    assert json.loads((home / "__grp__k.json").read_bytes())["child_paths"] == {"k.cubin": str(home / "k.cubin")}
    assert not (tmp_path / "new/triton/0/OTHER/__grp__odd.json").exists()


def test_inductor_s_directory_is_where_torch_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "i"))
    monkeypatch.delenv("TRITON_CACHE_DIR", raising=False)
    assert places() == {"inductor": tmp_path / "i"}
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "i/triton/0"))  # as inductor sets it when it first runs
    assert places() == {"inductor": tmp_path / "i"}
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "t"))
    assert places() == {"inductor": tmp_path / "i", "triton": tmp_path / "t"}


def test_what_was_reused_is_what_torch_counted_since(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = {"inductor": {"fxgraph_cache_hit": 3, "fxgraph_cache_miss": 1}, "aot_autograd": {"autograd_cache_hit": 2}}
    monkeypatch.setitem(sys.modules, "torch._dynamo.utils", types.SimpleNamespace(counters=counted))  # type: ignore[arg-type]
    before = counters()
    assert before == Reuse(hits=3, misses=1, autograd_hits=2)
    counted["inductor"]["fxgraph_cache_hit"] = 5
    assert counters().since(before) == Reuse(hits=2)
    monkeypatch.delitem(sys.modules, "torch._dynamo.utils")
    assert counters() == Reuse()
