"""What `deploy/` ships for Kubernetes: as restricted as can be, one with itself, and with what daemon and client expect."""

from __future__ import annotations

import copy
import pathlib
import re
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from hotshelf_daemon.config import load
from hotshelf_daemon.config.settings import Settings
from hotshelf_daemon.config.values import parse_bytes
from hotshelf_shared import __version__
from tests.deploy.restricted import containers, violations
from tests.deploy.tools import kubectl

DEPLOY = pathlib.Path(__file__).parents[2] / "deploy"
EXAMPLE = DEPLOY / "kustomize" / "example"


def documents(text: str) -> dict[str, dict[str, Any]]:
    return {one["kind"]: one for one in yaml.safe_load_all(text)}


@pytest.fixture(scope="module")
def pod() -> dict[str, dict[str, Any]]:
    return documents((DEPLOY / "pod.yaml").read_text())


def kustomize(folder: pathlib.Path) -> str:
    done = subprocess.run([kubectl(), "kustomize", str(folder)], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def rendered() -> dict[str, dict[str, Any]]:
    """The example of the Kustomize component."""
    return documents(kustomize(EXAMPLE))


def spec_of(found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    spec: dict[str, Any] = found["Pod"]["spec"] if "Pod" in found else found["Deployment"]["spec"]["template"]["spec"]
    return spec


def by_name(listed: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {one["name"]: one for one in listed}


# ---- security


def test_the_pod_is_restricted(pod: dict[str, dict[str, Any]]) -> None:
    assert violations(spec_of(pod)) == []


def settings_of(node: Any, *path: Any) -> Iterator[tuple[Any, ...]]:
    """The way to every leaf, and to every list and mapping, below a security context."""
    for key in node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
        yield (*path, key)
        yield from settings_of(node[key], *path, key)


def test_without_any_one_of_its_settings_it_is_not(pod: dict[str, dict[str, Any]]) -> None:
    """But for users and groups, of which the standard says only that nobody is root."""
    spec, left_alone = spec_of(pod), {"runAsUser", "runAsGroup", "fsGroup", "fsGroupChangePolicy"}
    ways: list[tuple[Any, ...]] = [("automountServiceAccountToken",), ("enableServiceLinks",)]
    ways += [("securityContext", *way) for way in settings_of(spec["securityContext"])]
    for kind in ("initContainers", "containers"):
        for at, container in enumerate(spec[kind]):
            ways += [(kind, at, "securityContext", *way) for way in settings_of(container["securityContext"])]
    tried = [way for way in ways if way[-1] not in left_alone]
    assert len(tried) >= 12
    for way in tried:
        broken = copy.deepcopy(spec)
        node: Any = broken
        for key in way[:-1]:
            node = node[key]
        del node[way[-1]]
        assert violations(broken), way


def test_no_worker_can_write_to_the_shelf_and_all_see_the_whole_of_it(pod: dict[str, dict[str, Any]]) -> None:
    (worker,) = spec_of(pod)["containers"]
    mounts = by_name(worker["volumeMounts"])
    assert mounts["shelf"]["readOnly"]
    assert mounts["socket"]["readOnly"]
    assert not any("subPath" in mount for mount in mounts.values())  # links in the shelf are relative


# ---- what daemon and client expect


def test_the_configuration_is_one_that_the_daemon_takes(pod: dict[str, dict[str, Any]], tmp_path: pathlib.Path) -> None:
    keys = tmp_path / "keys"
    keys.mkdir()
    for name in ("access_key_id", "secret_access_key"):
        (keys / name).write_text("x")
    file = tmp_path / "hotshelf.yaml"
    file.write_text(pod["ConfigMap"]["data"]["hotshelf.yaml"].replace("/etc/hotshelf/origin", str(keys)))
    (sidecar,) = spec_of(pod)["initContainers"]
    env = {one["name"]: one["value"] for one in sidecar["env"]} | {"HOTSHELF_CONFIG": str(file)}
    settings = load({}, env).settings
    assert settings.listen == ":9464"
    assert settings.page_listen.startswith("127.0.0.1:")  # not to be reached from outside the pod
    assert settings.names


def test_the_budget_is_less_than_the_shelf(pod: dict[str, dict[str, Any]]) -> None:
    """Whoever exceeds a sizeLimit is evicted, with all that is in it."""
    budget = yaml.safe_load(pod["ConfigMap"]["data"]["hotshelf.yaml"])["budget"]
    limit = by_name(spec_of(pod)["volumes"])["shelf"]["emptyDir"]["sizeLimit"]
    assert parse_bytes(budget) <= 0.95 * parse_bytes(f"{limit}B")  # type: ignore[operator]


def test_both_look_for_the_same_store_and_socket(pod: dict[str, dict[str, Any]]) -> None:
    spec = spec_of(pod)
    (sidecar,), (worker,) = spec["initContainers"], spec["containers"]
    store, seen = ({one["name"]: one["value"] for one in container["env"]} for container in (sidecar, worker))
    assert store["PIPELINE_STORE"] == seen["HOTSHELF_STORE"]
    assert store["PIPELINE_STORE"].startswith(by_name(sidecar["volumeMounts"])["shelf"]["mountPath"] + "/")
    socket = pathlib.PurePath(Settings().socket)
    for container in (sidecar, worker):
        assert by_name(container["volumeMounts"])["socket"]["mountPath"] == str(socket.parent)


def test_the_worker_has_time_to_end_and_the_daemon_after_it(pod: dict[str, dict[str, Any]]) -> None:
    assert spec_of(pod)["terminationGracePeriodSeconds"] >= 2 * Settings().drain_s


def test_the_sidecar_is_one_and_is_asked_where_it_answers(pod: dict[str, dict[str, Any]]) -> None:
    (sidecar,) = spec_of(pod)["initContainers"]
    assert sidecar["restartPolicy"] == "Always"
    (port,) = sidecar["ports"]
    for probe, path in (("livenessProbe", "/livez"), ("readinessProbe", "/readyz")):
        assert sidecar[probe]["httpGet"] == {"path": path, "port": port["name"]}
    assert sidecar["startupProbe"]["exec"]["command"][:2] == ["hotshelf", "health"]


def test_the_images_are_of_this_version(pod: dict[str, dict[str, Any]]) -> None:
    for container in containers(spec_of(pod)):
        assert re.fullmatch(rf"hotshelf-(daemon|worker):{re.escape(__version__)}", container["image"])


# ---- Kustomize


def test_the_component_makes_of_a_deployment_what_the_pod_is(
    pod: dict[str, dict[str, Any]], rendered: dict[str, dict[str, Any]]
) -> None:
    plain, made = copy.deepcopy(spec_of(pod)), copy.deepcopy(spec_of(rendered))
    assert rendered["ConfigMap"]["metadata"]["name"] == "hotshelf"  # the same whatever is in it: hotshelfd follows a change
    for spec in (plain, made):
        spec["volumes"] = by_name(spec["volumes"])
        for container in containers(spec):
            container["volumeMounts"] = by_name(container["volumeMounts"])
            container["readinessProbe"] = container["readinessProbe"]["httpGet"]
    assert made == plain


def test_a_deployment_without_the_label_stays_as_it_is(tmp_path: pathlib.Path) -> None:
    shutil.copytree(DEPLOY / "kustomize", tmp_path / "kustomize")
    example = tmp_path / "kustomize" / "example" / "deployment.yaml"
    other = yaml.safe_load(example.read_text())
    del other["metadata"]["labels"]
    example.write_text(yaml.safe_dump(other))
    assert spec_of(documents(kustomize(example.parent))) == other["spec"]["template"]["spec"]


def test_what_is_rendered_is_restricted_and_configured_alike(
    pod: dict[str, dict[str, Any]], rendered: dict[str, dict[str, Any]]
) -> None:
    assert violations(spec_of(rendered)) == []
    assert rendered["ConfigMap"]["data"] == {"hotshelf.yaml": pod["ConfigMap"]["data"]["hotshelf.yaml"]}


# ---- the README


def test_the_readme_s_values_are_the_plain_pod_s_configuration(pod: dict[str, dict[str, Any]]) -> None:
    section = (DEPLOY.parent / "README.md").read_text().partition("## Kubernetes")[2].partition("\n## ")[0]
    (text,) = re.findall(r"^```yaml\n(.*?)^```", section, re.DOTALL | re.MULTILINE)
    values = yaml.safe_load(text)
    assert values == yaml.safe_load((DEPLOY / "chart" / "hotshelf" / "ci" / "plain-values.yaml").read_text())
    shipped = yaml.safe_load(pod["ConfigMap"]["data"]["hotshelf.yaml"])
    for origin in shipped["origins"].values():
        for name in ("access_key_id_file", "secret_access_key_file"):
            del origin[name]
    del shipped["budget"]
    assert values["config"] == shipped
    (secret,) = values["credentials"].values()
    assert secret == by_name(spec_of(pod)["volumes"])["origin"]["secret"]["secretName"]
    assert f"secret generic {secret} " in section


def test_the_readme_names_what_the_pod_has(pod: dict[str, dict[str, Any]]) -> None:
    section = (DEPLOY.parent / "README.md").read_text().partition("## Kubernetes")[2].partition("\n## ")[0]
    spec = spec_of(pod)
    (sidecar,), (worker,) = spec["initContainers"], spec["containers"]
    assert {f"`{one['name']}" in section for one in worker["env"]} == {True}
    assert f"port {sidecar['ports'][0]['containerPort']}" in section
    for path in re.findall(r"\]\((deploy/[^)]+)\)", section):
        assert (DEPLOY.parent / path).exists(), path
