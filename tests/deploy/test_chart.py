"""The Helm chart: for every values file restricted, taken by the daemon, and the same sidecar as in the plain pod."""

from __future__ import annotations

import json
import pathlib
import re
import subprocess
from typing import Any

import pytest
import yaml
from prometheus_client import generate_latest

from hotshelf_daemon.config import GcsSettings, load
from hotshelf_daemon.config.settings import OriginSettings, Settings
from hotshelf_daemon.metrics import Metrics
from hotshelf_shared import __version__
from tests.deploy.restricted import violations
from tests.deploy.test_manifests import DEPLOY, by_name, documents, spec_of
from tests.deploy.tools import helm

CHART = DEPLOY / "chart" / "hotshelf"
VALUES = sorted((CHART / "ci").glob("*-values.yaml"))
Rendered = dict[str, list[dict[str, Any]]]


def run(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([helm(), *args], check=False, capture_output=True, text=True, timeout=60)


def render(*args: str) -> Rendered:
    done = run("template", "shelf", str(CHART), *args)
    assert done.returncode == 0, done.stderr
    found: Rendered = {}
    for one in yaml.safe_load_all(done.stdout):
        found.setdefault(one["kind"], []).append(one)
    return found


@pytest.fixture(scope="module", params=VALUES, ids=lambda path: path.stem)
def rendered(request: pytest.FixtureRequest) -> Rendered:
    return render("--values", str(request.param))


def pods(found: Rendered) -> list[dict[str, Any]]:
    """The one with hotshelfd in it comes first."""
    templates = [*found.get("DaemonSet", ()), *found["Deployment"]]
    return [one["spec"]["template"]["spec"] for one in templates] + [one["spec"] for one in found.get("Pod", ())]


def daemon_of(spec: dict[str, Any]) -> dict[str, Any]:
    return by_name([*spec.get("initContainers", ()), *spec["containers"]])["hotshelfd"]


@pytest.mark.parametrize("values", VALUES, ids=lambda path: path.stem)
def test_helm_has_nothing_against_it(values: pathlib.Path) -> None:
    done = run("lint", "--strict", str(CHART), "--values", str(values))
    assert done.returncode == 0, done.stdout


def test_every_pod_is_restricted(rendered: Rendered) -> None:
    for spec in pods(rendered):
        assert violations(spec) == []


def test_every_mount_has_its_volume_and_every_volume_a_mount(rendered: Rendered) -> None:
    for spec in pods(rendered):
        mounted = {one["name"] for kind in ("initContainers", "containers") for container in spec.get(kind, ())
                   for one in container.get("volumeMounts", ())}  # fmt: skip
        assert mounted == set(by_name(spec.get("volumes", [])))


def test_the_daemon_takes_the_configuration(rendered: Rendered, tmp_path: pathlib.Path) -> None:
    config = rendered["ConfigMap"][0]
    text = config["data"]["hotshelf.yaml"]
    for folder in re.findall(r"/etc/hotshelf/credentials/[-\w]+", text):
        kept = tmp_path / pathlib.PurePath(folder).name
        kept.mkdir(exist_ok=True)
        for name in ("access_key_id", "secret_access_key"):
            (kept / name).write_text("x")
    file = tmp_path / "hotshelf.yaml"
    file.write_text(text.replace("/etc/hotshelf/credentials", str(tmp_path)))
    (spec, *_) = pods(rendered)
    env = {one["name"]: one["value"] for one in daemon_of(spec)["env"]} | {"HOTSHELF_CONFIG": str(file)}
    settings = load({}, env).settings
    assert settings.page_listen.startswith("127.0.0.1:")
    assert isinstance(settings.budget, int)
    assert settings.origins


def test_the_key_of_compile_caches_is_the_daemon_s_alone(tmp_path: pathlib.Path) -> None:
    given = "bundleKey=keys,config.publish.bundles=s3://a/b,config.bundles.max_size=1GiB"
    found = render("--set", given)
    (spec, *_) = pods(found)
    volume = by_name(spec["volumes"])["bundle-key"]["secret"]
    assert volume == {"secretName": "keys", "defaultMode": 0o440, "items": [{"key": "key", "path": "key"}]}
    mount = by_name(daemon_of(spec)["volumeMounts"])["bundle-key"]
    assert (mount["mountPath"], mount["readOnly"]) == ("/etc/hotshelf/bundles", True)
    everybody = [*spec["initContainers"], *spec["containers"]]
    assert sum("bundle-key" in by_name(one.get("volumeMounts", ())) for one in everybody) == 1
    file = tmp_path / "hotshelf.yaml"
    file.write_text(found["ConfigMap"][0]["data"]["hotshelf.yaml"])
    settings = load({}, {"HOTSHELF_CONFIG": str(file)}).settings
    assert (settings.bundles.key_file, settings.bundles.max_size) == ("/etc/hotshelf/bundles/key", 1 << 30)
    assert settings.publish.bundles == "s3://a/b"


def test_a_change_of_the_configuration_rolls_no_pod_and_reaches_the_daemon() -> None:
    """It follows its file; a file mounted by `subPath` would never change."""
    one, other = (render("--set", f"config.prefetch.max_rate={rate}") for rate in ("1MiB/s", "2MiB/s"))
    assert one["Deployment"] == other["Deployment"]
    assert one["ConfigMap"] != other["ConfigMap"]
    (sidecar,) = one["Deployment"][0]["spec"]["template"]["spec"]["initContainers"]
    assert "subPath" not in by_name(sidecar["volumeMounts"])["config"]


def test_the_sidecar_is_that_of_the_plain_pod() -> None:
    plain = spec_of(documents((DEPLOY / "pod.yaml").read_text()))
    (made, *_) = pods(render("--values", str(CHART / "ci" / "plain-values.yaml")))
    (of_pod,), (of_chart,) = plain["initContainers"], made["initContainers"]
    for sidecar in (of_pod, of_chart):
        sidecar.pop("imagePullPolicy", None)
        mounts = by_name(sidecar.pop("volumeMounts"))
        assert mounts["shelf"] == {"name": "shelf", "mountPath": "/shelf"}
        assert mounts["socket"] == {"name": "socket", "mountPath": "/run/hotshelf"}
        assert sum(bool(mount.get("readOnly")) for mount in mounts.values()) == 2  # configuration and credentials
    assert of_chart == of_pod
    assert made["securityContext"] == plain["securityContext"]
    for name in ("shelf", "socket"):
        assert by_name(made["volumes"])[name] == by_name(plain["volumes"])[name]
    workers = [spec["containers"][0] for spec in (plain, made)]
    for key in ("image", "env", "ports", "readinessProbe", "resources", "securityContext"):
        assert workers[0][key] == workers[1][key]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("worker.replicas=x", "want integer"),
        ("store.size=big", "does not match"),
        ("store.typ=emptyDir", "'typ' not allowed"),
        ("stor.size=1Gi", "'stor' not allowed"),
        ("store.budget=60Gi", "95 % is the most"),
        ("store.budget=70Gi", "95 % is the most"),
        ("daemon.user=0", "minimum"),
        ("worker.user=10001", "must differ"),
        ("group=0", "minimum"),
        ("credentials.nobody=secret", "no origin of that name"),
        ("config.budget=1GiB", "the chart's to set"),
        ("config.listen=:80", "the chart's to set"),
        ("config.origins.a.secret_access_key=x", "no place for credentials"),
        ("store.type=claim", "claimName is missing"),
        ("store.type=claim,store.claimName=x,worker.replicas=2", "one hotshelfd to a shelf"),
        ("store.type=hostPath", "must be one of"),
        ("mode=node", "seen by one pod only"),
        ("mode=node,store.type=ephemeral", "seen by one pod only"),
        ("mode=node,store.type=claim", "claimName is missing"),
        ("mode=cluster", "must be one of"),
        ("store.type=local,worker.replicas=2", "one hotshelfd to a shelf"),
        ("store.type=local,store.path=var", "does not match"),
        ("store.type=local,store.path=/var/../etc", "does not match"),
        ("config.budjet=1GiB", "'budjet' not allowed"),
        ("config.origins.a.endpont_url=https://a", "'endpont_url' not allowed"),
        ("config.socket_mode=0600", "the chart's to set"),
        ("config.idle_exit_s=5", "the chart's to set"),
        ("config.hf.token=hf_x", "no place for credentials"),
        ("config.hub_mirror.token=x", "no place for credentials"),
        ("secrets.Bundles=key", "does not match"),
        ("config.publish.bundles=s3://a/b", "bundleKey is missing"),
        ("bundleKey=a,config.bundles.key_file=/b", "bundleKey names a Secret"),
        ("bundleKey=../a", "does not match"),
        ("podMonitor.enabled=true", "metricsFrom is empty"),
        ("worker.port=9464", "9464 is hotshelfd's"),
        ("worker.scratch./shelf=1Gi", "something else is mounted there"),
        ("worker.scratch./run/hotshelf/=1Gi", "something else is mounted there"),
        ("worker.scratch.tmp=1Gi", "does not match"),
    ],
)
def test_what_cannot_work_is_refused_when_it_is_rendered(given: str, said: str) -> None:
    done = run("template", "shelf", str(CHART), "--set", given)
    assert done.returncode != 0
    assert said in done.stderr


def test_a_peer_that_is_nobody_is_refused() -> None:
    done = run("template", "shelf", str(CHART), "--set-json", "networkPolicy.workerFrom=[{}]")
    assert "minProperties" in done.stderr


def test_a_release_that_cannot_name_a_service_is_refused() -> None:
    done = run("template", "1abc", str(CHART))
    assert done.returncode != 0
    assert "cannot name a Service" in done.stderr


def test_the_schema_knows_what_the_daemon_knows() -> None:
    config = json.loads((CHART / "values.schema.json").read_text())["properties"]["config"]
    assert config["properties"].keys() == Settings.model_fields.keys()
    assert config["additionalProperties"] is False
    origin = config["properties"]["origins"]["additionalProperties"]
    assert origin["properties"].keys() == OriginSettings.model_fields.keys()
    assert origin["additionalProperties"] is False
    assert config["properties"]["gcs"]["properties"].keys() == GcsSettings.model_fields.keys()


def test_odd_values_stay_what_they_are() -> None:
    """Numbers that are names, braces in a path, labels that are ours."""
    names = "credentials.a=123,podLabels.app\\.kubernetes\\.io/component=x,podLabels.mine=1,runtimeClassName=1"
    ours = "podMonitor.labels.app\\.kubernetes\\.io/name=x"
    more = "config.origins.a.unsigned=true,podMonitor.enabled=true,networkPolicy.enabled=false"
    path = 'worker.readinessPath="/h?x={y}"'
    odd = ("--set-string", names, "--set-string", ours, "--set", more, "--set-json", path)
    found = render(*odd)
    (deployment,) = found["Deployment"]
    template = deployment["spec"]["template"]
    assert template["metadata"]["labels"]["mine"] == "1"
    assert deployment["spec"]["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
    assert by_name(template["spec"]["volumes"])["origin-a"]["secret"]["secretName"] == "123"
    assert template["spec"]["runtimeClassName"] == "1"
    assert template["spec"]["containers"][0]["readinessProbe"]["httpGet"]["path"] == "/h?x={y}"
    assert found["PodMonitor"][0]["metadata"]["labels"]["app.kubernetes.io/name"] == "hotshelf"


def test_who_scrapes_is_let_in(rendered: Rendered) -> None:
    for _ in rendered.get("PodMonitor", ()):
        for policy in rendered.get("NetworkPolicy", ()):
            assert 9464 in {port["port"] for rule in policy["spec"]["ingress"] for port in rule["ports"]}


def test_metrics_are_reached_only_by_whom_the_values_name(rendered: Rendered) -> None:
    for policy in rendered.get("NetworkPolicy", ()):
        assert policy["spec"]["policyTypes"] == ["Ingress"]
        reached = {port["port"] for rule in policy["spec"]["ingress"] for port in rule["ports"]}
        assert reached <= {8000, 9464}
        assert all(rule["from"] for rule in policy["spec"]["ingress"])
    (nobody,) = render()["NetworkPolicy"]
    assert [port["port"] for rule in nobody["spec"]["ingress"] for port in rule["ports"]] == [8000]


def metrics_that_there_are() -> set[str]:
    metrics = Metrics("test")
    kinds = dict(re.findall(r"^# TYPE (\w+) (\w+)", generate_latest(metrics.registry).decode(), re.MULTILINE))
    return {f"{name}_bucket" if kind == "histogram" else name for name, kind in kinds.items()}


def test_alerts_are_about_metrics_that_there_are() -> None:
    rules = yaml.safe_load((CHART / "rules.yaml").read_text())
    asked = {name for group in rules for rule in group["rules"] for name in re.findall(r"hotshelf_\w+", rule["expr"])}
    assert asked
    assert asked <= metrics_that_there_are()
    (shown,) = render("--set", "prometheusRule.enabled=true")["PrometheusRule"]
    assert shown["spec"]["groups"] == rules


def test_the_dashboard_shows_metrics_that_there_are() -> None:
    (shown,) = (one for one in render("--set", "dashboard.enabled=true")["ConfigMap"] if "hotshelf.json" in one["data"])
    assert shown["metadata"]["labels"]["grafana_dashboard"] == "1"
    board = json.loads(shown["data"]["hotshelf.json"])
    asked = {
        name for panel in board["panels"] for target in panel["targets"] for name in re.findall(r"hotshelf_\w+", target["expr"])
    }
    assert asked <= metrics_that_there_are()
    assert {"hotshelf_acquire_total", "hotshelf_store_bytes", "hotshelf_origin_bytes_total"} <= asked
    places = [tuple(panel["gridPos"].values()) for panel in board["panels"]]
    assert all(x + width <= 24 for x, _, width, _ in places)
    assert not any(
        one[0] < other[0] + other[2]
        and other[0] < one[0] + one[2]
        and one[1] < other[1] + other[3]
        and other[1] < one[1] + one[3]
        for at, one in enumerate(places)
        for other in places[:at]
    )


# ---- one hotshelfd a node


@pytest.fixture(scope="module")
def on_nodes() -> Rendered:
    return render("--values", str(CHART / "ci" / "node-values.yaml"))


def test_a_node_s_pods_share_nothing_but_a_volume_of_their_node(on_nodes: Rendered) -> None:
    (volume,), (claim,) = on_nodes["PersistentVolume"], on_nodes["PersistentVolumeClaim"]
    assert volume["spec"]["local"] == {"path": "/mnt/nvme/hotshelf"}
    assert volume["spec"]["claimRef"] == {"namespace": "default", "name": claim["metadata"]["name"]}
    assert claim["spec"]["volumeName"] == volume["metadata"]["name"]
    larger = render("--values", str(CHART / "ci" / "node-values.yaml"), "--set", "store.size=2Ti")
    assert larger["PersistentVolumeClaim"] == [claim]  # it cannot be resized
    assert larger["ConfigMap"] != on_nodes["ConfigMap"]
    for key in ("accessModes", "storageClassName"):
        assert claim["spec"][key] == volume["spec"][key]
    daemon, worker, *_ = pods(on_nodes)
    for spec, read_only in ((daemon, False), (worker, True)):  # what is read-only the kubelet does not chown either
        claimed = by_name(spec["volumes"])["shelf"]["persistentVolumeClaim"]
        assert (claimed["claimName"], claimed.get("readOnly", False)) == (claim["metadata"]["name"], read_only)
        assert "socket" not in by_name(spec["volumes"])
    assert {one["name"] for one in worker["volumes"]} & {one["name"] for one in daemon["volumes"]} == {"shelf"}


def test_whoever_uses_a_node_s_hotshelfd_sees_the_shelf_read_only_and_waits_for_the_socket(on_nodes: Rendered) -> None:
    daemon, worker, *_ = pods(on_nodes)
    socket = {one["value"] for one in daemon_of(daemon)["env"] if one["name"] == "HOTSHELF_SOCKET"}
    (waiting,), (working,) = worker["initContainers"], worker["containers"]
    for container in (waiting, working):
        assert by_name(container["volumeMounts"])["shelf"]["readOnly"]
        assert {one["value"] for one in container["env"] if one["name"] == "HOTSHELF_SOCKET"} == socket
    assert "until hotshelf health" in waiting["command"][-1]


def test_volumes_of_two_releases_are_never_one() -> None:
    """They have no namespace."""
    values = ("--values", str(CHART / "ci" / "node-values.yaml"))
    names = set()
    for release, namespace in (("hotshelf", "prod-x"), ("x", "prod"), ("x", "prod-x")):
        done = run("template", release, str(CHART), "--namespace", namespace, *values)
        names |= {one["metadata"]["name"] for one in yaml.safe_load_all(done.stdout) if one["kind"] == "PersistentVolume"}
    assert len(names) == 3


def test_pods_of_a_shelf_may_have_one_selinux_level() -> None:
    found = render("--values", str(CHART / "ci" / "node-values.yaml"), "--set-string", "seLinuxLevel=s0:c1\\,c2")
    for spec in pods(found)[:2]:
        assert spec["securityContext"]["seLinuxOptions"] == {"level": "s0:c1,c2"}
        assert violations(spec) == []


def test_selectors_tell_daemons_and_workers_apart_and_metrics_are_had_of_both_modes(on_nodes: Rendered) -> None:
    (daemons,), (workers,) = on_nodes["DaemonSet"], on_nodes["Deployment"]
    labels = [one["spec"]["template"]["metadata"]["labels"] for one in (daemons, workers)]
    for at, one in enumerate((daemons, workers)):
        chosen = [one["spec"]["selector"]["matchLabels"].items() <= other.items() for other in labels]
        assert chosen == [at == 0, at == 1]
    monitored = on_nodes["PodMonitor"][0]["spec"]["selector"]["matchLabels"].items()
    assert all(monitored <= one.items() for one in labels)
    assert {one["name"] for one in daemon_of(daemons["spec"]["template"]["spec"])["ports"]} == {"hotshelf"}
    (service,) = on_nodes["Service"]
    chosen = [service["spec"]["selector"].items() <= one.items() for one in labels]
    assert chosen == [False, True]


def test_the_chart_is_of_this_version_and_its_schema_knows_every_value() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (__version__, __version__)
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert schema["properties"].keys() - {"global"} == values.keys()
    assert schema["additionalProperties"] is False
    for name, value in values.items():
        if isinstance(value, dict) and value and name != "config":
            assert value.keys() == schema["properties"][name]["properties"].keys(), name
