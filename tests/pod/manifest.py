"""deploy/pod.yaml as podman can play it: what its kubelet's part leaves out is done by hand, and nothing else is changed.

podman 4.3 knows no sidecars (they become containers), gives a volume no fsGroup (an init container makes them as the kubelet
does: group fsGroup, mode 2777) and does not decode a Secret's files (a ConfigMap takes its place). Beside hotshelfd come an
origin, and a second worker of another uid.
"""

from __future__ import annotations

import copy
import json
import pathlib
from typing import Any

import yaml

POD = pathlib.Path(__file__).parents[2] / "deploy" / "pod.yaml"
ENDPOINT = "http://127.0.0.1:8333"
KEY_ID, SECRET = "pod-test-key", "canary-3f1d9b-must-never-be-seen"
IMAGES = {"hotshelf-daemon:0.1.0": "localhost/hotshelf-daemon:pod", "hotshelf-worker:0.1.0": "localhost/hotshelf-worker:pod"}
ORIGIN_IMAGE = "localhost/hotshelf-test-origin:pod"
WORKERS = {"worker": (10002, 8000), "worker-b": (10777, 8001)}


def shipped() -> tuple[dict[str, Any], dict[str, Any]]:
    """The ConfigMap and the Pod as they are."""
    config, pod = yaml.safe_load_all(POD.read_text())
    return config, pod


def playable(model: pathlib.Path, *, name: str) -> list[dict[str, Any]]:
    config, pod = copy.deepcopy(shipped())
    settings = yaml.safe_load(config["data"]["hotshelf.yaml"])
    settings["origins"]["weights"].update(endpoint_url=ENDPOINT, region="us-east-1")
    settings["models"] = {"tiny": {"source": "s3://weights/tiny"}}
    settings["budget"] = "1GiB"
    config["data"]["hotshelf.yaml"] = yaml.safe_dump(settings)
    keys = _config_map("hotshelf-origin", {"access_key_id": KEY_ID, "secret_access_key": SECRET})
    rights = ["Admin", "Read", "Write", "List", "Tagging"]
    accounts = {"identities": [{"name": "pod", "credentials": [{"accessKey": KEY_ID, "secretKey": SECRET}], "actions": rights}]}
    weed = _config_map("weed", {"s3.json": json.dumps(accounts)})
    spec = pod["spec"]
    # The usual kind is removed when it is through, which fails where the pod restarts its containers.
    pod["metadata"] |= {"name": name, "annotations": {"io.podman.annotations.init.container.type": "always"}}
    (sidecar,) = spec.pop("initContainers")
    del sidecar["restartPolicy"]
    sidecar["volumeMounts"].append({"name": "model", "mountPath": "/model", "readOnly": True})
    (worker,) = spec["containers"]
    spec["containers"] = [_origin(), sidecar, *(_worker(worker, *one) for one in WORKERS.items())]
    spec["restartPolicy"] = "Always"
    group = spec["securityContext"].pop("fsGroup")
    spec["securityContext"]["supplementalGroups"] = [group]
    spec["initContainers"] = [_as_the_kubelet_does(sidecar["image"], group)]
    for volume in spec["volumes"]:
        if secret := volume.pop("secret", None):
            volume["configMap"] = {"name": secret["secretName"]}
    spec["volumes"] += [
        {"name": "model", "hostPath": {"path": str(model), "type": "Directory"}},
        {"name": "weed", "configMap": {"name": "weed"}},
    ]
    for container in (*spec["containers"], *spec["initContainers"]):
        container["image"] = IMAGES.get(container["image"], container["image"])
        container["imagePullPolicy"] = "Never"
        for beyond in ("startupProbe", "livenessProbe", "readinessProbe", "ports"):
            container.pop(beyond, None)  # podman has no kubelet, the pod no network: the test asks what they ask, in the pod
    return [config, weed, keys, pod]


def _config_map(name: str, data: dict[str, str]) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


def _origin() -> dict[str, Any]:
    mount = {"name": "weed", "mountPath": "/etc/weed"}
    return {"name": "origin", "image": ORIGIN_IMAGE, "volumeMounts": [mount], "securityContext": {"runAsUser": 0, "runAsNonRoot": False}}  # fmt: skip  # noqa: E501


def _worker(shipped: dict[str, Any], name: str, of: tuple[int, int]) -> dict[str, Any]:
    worker, (uid, port) = copy.deepcopy(shipped), of
    worker["name"] = name
    worker["securityContext"] |= {"runAsUser": uid, "runAsGroup": uid}
    worker["command"] = ["python", "-m", "hotshelf.handler", "--serve", f"0.0.0.0:{port}"]
    return worker


def _as_the_kubelet_does(image: str, group: int) -> dict[str, Any]:
    """Empty volumes belong to the fsGroup, and everybody may write to them."""
    folders = ["/shelf", "/run/hotshelf", "/outputs", "/tmp2"]
    steps = " && ".join(f"chgrp {group} {one} && chmod 2777 {one}" for one in folders)
    names = zip(("shelf", "socket", "outputs", "tmp"), folders, strict=True)
    return {
        "name": "kubelet", "image": image, "command": ["sh", "-c", steps],
        "securityContext": {"runAsUser": 0, "runAsNonRoot": False},
        "volumeMounts": [{"name": volume, "mountPath": folder} for volume, folder in names],
    }  # fmt: skip
