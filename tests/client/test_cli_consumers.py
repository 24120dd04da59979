"""`hotshelf env`: what programs that know nothing of us need to read the shelf."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import yaml

from hotshelf.transport import Reply

from .conftest import Run
from .fakes import FakeDaemon

NAMES = {"HOTSHELF_STORE", "HOTSHELF_SOCKET", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY"}


def test_a_shell_that_evals_it_has_the_variables(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOTSHELF_STORE", str(tmp_path / "a 'shelf'"))
    lines = run("env", "--shell").stdout
    assert all(line.startswith("export ") for line in lines.splitlines())
    script = f'{lines}\nprintf %s "$HF_HUB_CACHE|$HF_HUB_OFFLINE"'
    said = subprocess.run(["sh", "-ec", script], capture_output=True, text=True, check=True, timeout=10).stdout
    assert said == f"{tmp_path}/a 'shelf'/hub|1"


def test_a_container_takes_it_as_its_env(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIPELINE_STORE", "/shelf")
    listed = yaml.safe_load(run("env", "--k8s").stdout)
    assert {one["name"] for one in listed} == NAMES
    assert {"name": "HF_HUB_CACHE", "value": "/shelf/hub"} in listed
    assert all(isinstance(one["value"], str) for one in listed)


def test_the_daemon_is_asked_where_the_shelf_is_when_nothing_says_so(run: Run, daemon: FakeDaemon) -> None:
    daemon.looks["GET", "/v1/status"] = lambda _: Reply({"store": "/var/shelf"})
    assert json.loads(run("env", "--format", "json").stdout)["HF_HUB_CACHE"] == "/var/shelf/hub"


def test_for_people_it_is_a_table_and_quiet_is_for_shells(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOTSHELF_STORE", "/shelf")
    assert run("env").stdout.splitlines()[0].split() == ["VARIABLE", "VALUE"]
    assert "export HF_HUB_CACHE=/shelf/hub" in run("env", "--format", "quiet").stdout
