"""Embedded mode with real processes: one daemon for all of them, started by whoever comes first, gone after the last."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import time

import pytest

from tests.servers.child import clean_environment
from tests.waiting import wait_until

ACQUIRE = """
import json, sys, hotshelf
with hotshelf.acquire(sys.argv[1]) as lease:
    print(json.dumps({"pid": hotshelf.status()["pid"], "bytes": (lease.path / "w.safetensors").read_bytes().hex()}))
"""


@pytest.fixture
def model(tmp_path: pathlib.Path) -> pathlib.Path:
    folder = tmp_path / "models" / "m"
    folder.mkdir(parents=True)
    (folder / "w.safetensors").write_bytes(b"weights")
    return folder


@pytest.fixture
def environment(tmp_path: pathlib.Path) -> dict[str, str]:
    return clean_environment(
        PIPELINE_STORE=str(tmp_path / "store"),
        XDG_RUNTIME_DIR=str(tmp_path),
        HOTSHELF_AUTOSTART="1",
        HOTSHELF_ROOTS=f'["{tmp_path / "models"}"]',
        HOTSHELF_INDEX__PATH=str(tmp_path / "index.db"),
    )


def start(environment: dict[str, str], source: str) -> subprocess.Popen[str]:
    argv = [sys.executable, "-c", ACQUIRE, source]
    return subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def is_alive(pid: int) -> bool:
    return os.path.exists(f"/proc/{pid}")


def test_eight_processes_started_at_once_share_one_daemon_that_goes_after_the_last(
    model: pathlib.Path, environment: dict[str, str]
) -> None:
    workers = [start(environment, f"file://{model}") for _ in range(8)]
    said = [worker.communicate(timeout=120) for worker in workers]
    assert [worker.returncode for worker in workers] == [0] * 8, said
    answers = [json.loads(out) for out, _ in said]
    assert {answer["bytes"] for answer in answers} == {b"weights".hex()}
    (pid,) = {answer["pid"] for answer in answers}
    assert is_alive(pid)
    ended = time.monotonic()
    wait_until(lambda: not is_alive(pid), timeout_s=30)
    assert time.monotonic() - ended < 15


def test_a_daemon_that_cannot_start_is_an_error_with_its_own_words(model: pathlib.Path, environment: dict[str, str]) -> None:
    worker = start({**environment, "HOTSHELF_BUDGET": "lots"}, f"file://{model}")
    _, said = worker.communicate(timeout=60)
    assert worker.returncode != 0
    assert "BadConfiguration" in said
    assert "'budget'" in said


def test_without_autostart_no_daemon_is_started(
    model: pathlib.Path, environment: dict[str, str], tmp_path: pathlib.Path
) -> None:
    code = "import hotshelf\nhotshelf.Client().acquire('x', timeout=0.3)"
    quiet = {**environment, "HOTSHELF_AUTOSTART": "0", "HOTSHELF_SOCKET": str(tmp_path / "s")}
    worker = subprocess.run([sys.executable, "-c", code], env=quiet, capture_output=True, text=True, timeout=60)
    assert "DaemonUnavailable" in worker.stderr
    assert str(tmp_path / "s") in worker.stderr
    assert not (tmp_path / "store").exists()
