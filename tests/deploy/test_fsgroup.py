"""The plain pod's containers as processes of two uids, with nothing in common but the fsGroup."""

from __future__ import annotations

import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest

from tests.deploy.apart import TREE

pytestmark = [pytest.mark.root, pytest.mark.needs("unshare", "ip", "setpriv")]


@pytest.fixture(scope="module")
def seen() -> Iterator[dict[str, Any]]:
    folder = pathlib.Path(tempfile.mkdtemp(prefix="hs-"))
    folder.chmod(0o755)
    argv = ["unshare", "--net", "--mount", sys.executable, "-m", "tests.deploy.apart", str(folder)]
    done = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    yield json.loads(done.stdout)
    shutil.rmtree(folder, ignore_errors=True)


def test_a_worker_of_another_uid_gets_the_model_through_the_socket(seen: dict[str, Any]) -> None:
    assert {name: bytes.fromhex(data) for name, data in seen["worker"]["got"].items()} == TREE
    assert seen["owner"] == [10001, 10000]


def test_it_can_change_nothing_on_the_shelf_and_leaves_the_socket_where_it_is(seen: dict[str, Any]) -> None:
    assert set(seen["worker"]["tried"].values()) <= {"PermissionError", "OSError"}, seen["worker"]["tried"]
    assert len(seen["worker"]["tried"]) == 4


def test_who_is_not_of_the_group_is_told_what_to_do(seen: dict[str, Any]) -> None:
    assert seen["stranger"]["refused"] == "access_denied", seen["stranger"]
    assert "group" in seen["stranger"]["hint"]


def test_the_kubelet_s_probes_are_answered_on_the_pod_s_address_and_nothing_else_is_open_there(seen: dict[str, Any]) -> None:
    assert seen["probes"] == {"livenessProbe": 200, "readinessProbe": 200}
    assert seen["open"] == [9464]
