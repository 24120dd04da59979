"""What `deploy/` ships without a container engine: hotshelfd and a worker as processes of their uids, that have only the
fsGroup in common, on volumes laid as the kubelet lays them. Run as `unshare --net --mount python -m tests.deploy.apart FOLDER`,
by root, with a `Played` in FOLDER/played.json; prints JSON of what they and the kubelet see.
"""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from typing import Any, TypedDict

import yaml

from tests import objects
from tests.faults.apart import run
from tests.faults.scripted_origin import ScriptedOrigin
from tests.servers.child import Child, clean_environment

ROOT = pathlib.Path(__file__).parents[2]
POD_ADDRESS = "10.20.30.40"
TREE = objects.model("of the pod")
#: As the worker: what it gets of the model, and what it may do with the shelf.
WORKER = """
import json, os, pathlib, hotshelf
try:
    with hotshelf.acquire("sdxl") as lease:
        got = {str(path.relative_to(lease.path)): path.read_bytes().hex() for path in lease.path.rglob("*") if path.is_file()}
        blob = next(path for path in lease.path.rglob("*.safetensors")).resolve()
        tried = {}
        for name, do in {"write": lambda: blob.open("ab"), "unlink": blob.unlink, "add": (blob.parent / "x").touch,
                         "take the socket": lambda: os.unlink("SOCKET")}.items():
            try:
                do()
                tried[name] = "done"
            except OSError as error:
                tried[name] = type(error).__name__
        print(json.dumps({"got": got, "tried": tried}))
except Exception as error:
    print(json.dumps({"refused": getattr(error, "code", type(error).__name__), "hint": getattr(error, "hint", "")}))
"""


def make_reachable(folder: pathlib.Path, *needed: pathlib.Path) -> None:
    """In this mount namespace everybody gets to these folders, though one above them may be root's alone."""
    shut: dict[pathlib.Path, list[tuple[pathlib.Path, pathlib.Path]]] = {}
    for path in dict.fromkeys(path.resolve() for path in needed):
        above = [one for one in reversed(path.parents) if not one.stat().st_mode & 0o001]
        if above:
            kept = pathlib.Path(tempfile.mkdtemp(dir=folder))
            run("mount", "--bind", str(path), str(kept))
            shut.setdefault(above[0], []).append((path, kept))
    for above_all, within in shut.items():
        run("mount", "-t", "tmpfs", "-o", "mode=755", "none", str(above_all))
        for path, kept in within:
            path.mkdir(parents=True, exist_ok=True)
            run("mount", "--bind", str(kept), str(path))


class Played(TypedDict):
    """Out of a manifest: hotshelf.yaml, both containers, and what they have in common."""

    config: dict[str, Any]
    daemon: dict[str, Any]
    worker: dict[str, Any]
    group: int
    #: Of the shelf, and of the socket's folder: an emptyDir is 2777, a volume of the node 2775.
    mode: int


class Pods:
    """The manifest's containers, with `folder` before every path of theirs."""

    def __init__(self, folder: pathlib.Path, played: Played, endpoint_url: str) -> None:
        self.folder, self.played = folder, played
        self.config = played["config"] | {"budget": "1GiB"}
        origin = self.config["origins"]["weights"]
        origin |= {name: self.here(value) for name, value in origin.items() if name.endswith("_file")}
        origin["endpoint_url"] = endpoint_url

    def here(self, path: str) -> str:
        return f"{self.folder}{path}" if path.startswith("/") else path

    def lay_volumes(self) -> None:
        """A volume is the fsGroup's and hands that on; a secret is root's and the group's."""
        group = self.played["group"]
        for mount in self.played["daemon"]["volumeMounts"]:
            path = pathlib.Path(self.here(mount["mountPath"]))
            path.mkdir(parents=True)
            os.chown(path, 0, group)
            os.chmod(path, 0o755 if mount.get("readOnly") else self.played["mode"])
            for name, text in self._files(mount["name"]).items():
                (path / name).write_text(text)
                os.chown(path / name, 0, group)
                os.chmod(path / name, 0o440)

    def _files(self, volume: str) -> dict[str, str]:
        if volume == "config":
            return {"hotshelf.yaml": yaml.safe_dump(self.config)}
        return {"access_key_id": "key", "secret_access_key": "secret"} if volume.startswith("origin") else {}

    def environment(self, container: dict[str, Any]) -> dict[str, str]:
        usual = {"HOME": "/nonexistent", "HOTSHELF_SOCKET": f"{self.folder}/run/hotshelf/hotshelfd.sock"}
        return clean_environment(**usual | {one["name"]: self.here(one["value"]) for one in container["env"]})

    def identity(self, container: dict[str, Any], *groups: int) -> list[str]:
        given = container["securityContext"]
        joined = ",".join(map(str, groups or (self.played["group"],)))
        return ["setpriv", f"--reuid={given['runAsUser']}", f"--regid={given['runAsGroup']}", f"--groups={joined}",
                "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"]  # fmt: skip

    def confined(self, container: dict[str, Any], *groups: int) -> list[str]:
        """As `identity`, and what is mounted read-only there is: in an emptyDir anybody may unlink, the socket too."""
        paths = [self.here(mount["mountPath"]) for mount in container["volumeMounts"] if mount.get("readOnly")]
        mounts = "".join(f"mount --bind {path} {path}; mount -o remount,bind,ro {path}; " for path in paths)
        return ["unshare", "--mount", "sh", "-ec", f'{mounts}exec "$@"', "sh", *self.identity(container, *groups)]


def status_of(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def open_ports() -> set[int]:
    """Those of this network that can be reached from outside it (proc_net_tcp: local address, 0A is listening)."""
    found = set()
    for table in ("tcp", "tcp6"):
        for line in pathlib.Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            address, _, port = line.split()[1].partition(":")
            within = address == "0100007F" or address == "0" * 24 + "01000000"
            if line.split()[3] == "0A" and not within:
                found.add(int(port, 16))
    return found


def play(folder: pathlib.Path) -> dict[str, Any]:
    with ScriptedOrigin() as origin:
        origin.objects |= {f"sdxl/{path}": data for path, data in TREE.items()}
        played: Played = json.loads((folder / "played.json").read_text())
        pod = Pods(folder, played, origin.endpoint_url)
        pod.lay_volumes()
        sidecar, worker = played["daemon"], played["worker"]
        environment = pod.environment(sidecar)
        daemon = Child([*pod.identity(sidecar), sys.executable, "-m", "hotshelf_daemon"],
                       log=folder / "log", env=environment, cwd=pathlib.Path("/"))  # fmt: skip
        hotshelf = [str(pathlib.Path(sys.executable).parent / "hotshelf"), *sidecar["startupProbe"]["exec"]["command"][1:]]

        def begun() -> bool:
            asked = [*pod.identity(sidecar), *hotshelf]
            return subprocess.run(asked, check=False, env=environment, capture_output=True, timeout=30).returncode == 0

        def as_worker(*groups: int) -> Any:
            code = WORKER.replace("SOCKET", environment["HOTSHELF_SOCKET"])
            argv = [*pod.confined(worker, *groups), sys.executable, "-c", code]
            done = subprocess.run(
                argv, check=False, capture_output=True, text=True, timeout=120, env=pod.environment(worker), cwd="/"
            )
            return json.loads(done.stdout) if done.stdout else done.stderr

        try:
            daemon.wait_ready(begun, timeout_s=60)
            (port,) = sidecar["ports"]
            probes = {name: status_of(f"http://{POD_ADDRESS}:{port['containerPort']}{sidecar[name]['httpGet']['path']}")
                      for name in ("livenessProbe", "readinessProbe")}  # fmt: skip
            return {
                "probes": probes,
                "open": sorted(open_ports()),
                "worker": as_worker(),
                "stranger": as_worker(worker["securityContext"]["runAsGroup"]),
                "owner": [os.stat(environment["HOTSHELF_SOCKET"]).st_uid, os.stat(environment["HOTSHELF_SOCKET"]).st_gid],
            }
        finally:
            daemon.kill()


def main() -> None:
    folder = pathlib.Path(sys.argv[1])
    run("ip", "link", "set", "lo", "up")
    run("ip", "addr", "add", f"{POD_ADDRESS}/32", "dev", "lo")
    make_reachable(folder, ROOT, pathlib.Path(sys.prefix), pathlib.Path(sys.base_prefix))
    print(json.dumps(play(folder)))


if __name__ == "__main__":
    main()
