"""What is deleted on this machine, and what never is; the variables of b10-transfer; whose code is calling."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest

import hotshelf
import hotshelf_shared
from hotshelf.adapters import b10_transfer
from hotshelf.compile_cache import CacheError, CacheOperationInterrupted, CacheValidationError, clear_local_cache, local
from hotshelf.compile_cache.settings import Settings
from tests.compiling.conftest import lay, tree_of
from tests.servers.child import clean_environment

CACHE = {"ab/cabc.py": b"code", "fxgraph/zz/entry": b"graph", "locks/cabc.lock": b""}


@pytest.fixture
def here(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """Inductor's directory, with a cache in it."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    return lay(tmp_path / "inductor", CACHE)


def test_clearing_empties_inductor_s_directory(here: pathlib.Path) -> None:
    assert clear_local_cache() is True
    assert list(here.iterdir()) == []
    assert clear_local_cache() is True


def test_there_is_nothing_to_clear_where_there_is_no_directory(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "none"))
    assert clear_local_cache() is True


def test_a_link_in_the_cache_goes_and_what_it_leads_to_stays(here: pathlib.Path, tmp_path: pathlib.Path) -> None:
    precious = lay(tmp_path / "precious", {"file": b"kept"})
    (here / "ab/link").symlink_to(precious)
    (here / "zz").symlink_to(precious)
    assert clear_local_cache() is True
    assert list(here.iterdir()) == []
    assert tree_of(precious) == {"file": b"kept"}


@pytest.mark.parametrize("what", ["/", "home", "above home", "here", "a link", "a file", "somebody's folder"])
def test_what_is_not_inductor_s_directory_is_never_cleared(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    home = lay(tmp_path / "all/home", CACHE)
    work = lay(tmp_path / "work", CACHE)
    odd = lay(tmp_path / "odd", {**CACHE, "thesis.tex": b"years"})
    (tmp_path / "linked").symlink_to(lay(tmp_path / "torchinductor_me", CACHE))
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(work)
    places = {
        "/": "/", "home": str(home), "above home": str(tmp_path / "all"), "here": str(work), "a link": str(tmp_path / "linked"),
        "a file": str(odd / "thesis.tex"), "somebody's folder": str(odd),
    }  # fmt: skip
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", places[what])
    before = tree_of(tmp_path)
    assert clear_local_cache() is False
    assert tree_of(tmp_path) == before
    assert "nothing was deleted" in caplog.text
    assert caplog.records[0].name == "b10_transfer"


@pytest.mark.root
def test_another_user_s_directory_is_not_cleared(here: pathlib.Path) -> None:
    os.chown(here, 61_001, 61_001)
    with pytest.raises(CacheValidationError, match="another user"):
        local.clear(here)
    assert tree_of(here) == CACHE


def test_the_exceptions_are_b10_transfer_s() -> None:
    assert issubclass(CacheValidationError, CacheError)
    assert issubclass(CacheOperationInterrupted, CacheError)
    assert {status.name for status in b10_transfer.OperationStatus} == {"SUCCESS", "ERROR", "DOES_NOT_EXIST", "SKIPPED"}


def test_the_variables_are_b10_transfer_s(tmp_path: pathlib.Path) -> None:
    plain = Settings.read({})
    assert (plain.enabled, plain.max_archive_bytes, plain.max_saves) == (True, 1 << 30, 50)
    told = Settings.read({
        "BASETEN_FS_ENABLED": "0", "LOCAL_WORK_DIR": str(tmp_path), "MAX_CACHE_SIZE_MB": "0.5", "MAX_CONCURRENT_SAVES": "2",
        "B10FS_CACHE_DIR": "/cache/model/compile_cache", "HOTSHELF_BUNDLE_NAMESPACE": " sdxl ",
    })  # fmt: skip
    assert told == Settings(False, "sdxl", "/cache/model/compile_cache", tmp_path, 1 << 19, 2)


@pytest.mark.parametrize(
    "odd",
    [
        "MAX_CACHE_SIZE_MB=much",
        "MAX_CACHE_SIZE_MB=-1",
        "MAX_CONCURRENT_SAVES=nan",
        "MAX_CONCURRENT_SAVES=0",
        "LOCAL_WORK_DIR=x",
    ],
)
def test_a_variable_that_makes_no_sense_is_named(odd: str) -> None:
    name, _, value = odd.partition("=")
    with pytest.raises(CacheValidationError, match=name):
        Settings.read({name: value})


MODEL = """
import concurrent.futures, sys
from hotshelf.compile_cache import program
class Model:
    {remark}
    def load(self):
        return program.calling()
how = sys.argv[1]
if how == "plain":
    found = Model().load()
elif how == "thread":
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        found = pool.submit(program.calling).result()
print(found.name, found.digest)
"""


def called(folder: pathlib.Path, how: str, remark: str) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "model.py").write_text(MODEL.format(remark=f"'''{remark}'''"))
    argv = [sys.executable, "model.py", how]
    done = subprocess.run(argv, cwd=folder, env=clean_environment(), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_models_are_told_apart_by_the_code_that_calls_and_not_by_where_it_lies(tmp_path: pathlib.Path) -> None:
    first, again = called(tmp_path / "a", "plain", "draws"), called(tmp_path / "b", "plain", "draws")
    assert first == again
    assert first.startswith("model ")
    assert called(tmp_path / "a", "plain", "writes") != first
    assert called(tmp_path / "a", "thread", "draws") == first


def test_importing_it_needs_the_standard_library_only() -> None:
    script = (
        "import sys, hotshelf.adapters.b10_transfer, hotshelf.compile_cache;"
        "print(sorted({m.partition('.')[0] for m in sys.modules} - {*sys.stdlib_module_names, '__main__'}))"
    )
    homes = {str(pathlib.Path(module.__file__ or "").parents[1]) for module in (hotshelf, hotshelf_shared)}
    given = clean_environment(PYTHONPATH=os.pathsep.join(homes))
    done = subprocess.run([sys.executable, "-S", "-c", script], capture_output=True, text=True, timeout=60, env=given)
    assert done.stdout.strip() == "['hotshelf', 'hotshelf_shared']", done.stderr
