"""hotshelfd and a worker, of one pod and of two of a node, as processes of two uids that have only the fsGroup in common."""

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
import yaml

from tests.deploy.apart import TREE, Played
from tests.deploy.test_chart import CHART, render
from tests.deploy.test_manifests import DEPLOY, documents, spec_of

pytestmark = [pytest.mark.root, pytest.mark.needs("unshare", "ip", "setpriv")]


def plain_pod() -> Played:
    found = documents((DEPLOY / "pod.yaml").read_text())
    spec = spec_of(found)
    (daemon,), (worker,) = spec["initContainers"], spec["containers"]
    return Played(config=config_of(found["ConfigMap"]), daemon=daemon, worker=worker,
                  group=spec["securityContext"]["fsGroup"], mode=0o2777)  # fmt: skip


def pods_of_a_node() -> Played:
    """A DaemonSet's, and one that uses it; between them nothing is shared but the shelf, on which the socket lies."""
    values = str(CHART / "ci" / "plain-values.yaml")
    found = render("--values", values, "--set", "mode=node,store.type=local")
    ((daemon_pod,), (worker_pod,)) = (
        [one["spec"]["template"]["spec"] for one in found[kind]] for kind in ("DaemonSet", "Deployment")
    )
    assert daemon_pod["securityContext"] == worker_pod["securityContext"]
    (daemon,), (worker,) = daemon_pod["containers"], worker_pod["containers"]
    return Played(config=config_of(found["ConfigMap"][0]), daemon=daemon, worker=worker,
                  group=daemon_pod["securityContext"]["fsGroup"], mode=0o2775)  # fmt: skip


def config_of(config_map: dict[str, Any]) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load(config_map["data"]["hotshelf.yaml"])
    return config


@pytest.fixture(scope="module", params=[plain_pod, pods_of_a_node], ids=lambda one: one.__name__)
def seen(request: pytest.FixtureRequest) -> Iterator[dict[str, Any]]:
    folder = pathlib.Path(tempfile.mkdtemp(prefix="hs-"))
    folder.chmod(0o755)
    (folder / "played.json").write_text(json.dumps(request.param()))
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
