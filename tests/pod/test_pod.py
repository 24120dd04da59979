"""`make pod`: both images from their Dockerfiles, and deploy/pod.yaml as a real pod with a real bucket in it."""

from __future__ import annotations

import json
import os
import pathlib
import signal
from collections.abc import Iterator

import pytest
import yaml

from tests.pipelines import tiny
from tests.pod import engine, manifest
from tests.pod.manifest import ENDPOINT, IMAGES, KEY_ID, ORIGIN_IMAGE, SECRET, WORKERS
from tests.waiting import wait_until

pytestmark = [pytest.mark.pod, pytest.mark.root, pytest.mark.torch, pytest.mark.needs("podman")]
NAME = "hotshelf-pod-test"
#: What the daemon's image may add to its base.
MOST_ADDED_BYTES = 150_000_000
SERVING_S = 120
JOB = {"input": {"model": "tiny", "prompt": "a red circle", "seed": 7, "num_inference_steps": 2, "width": 16, "height": 16}}
#: Asks a worker over HTTP, in its own container, and says how long that took.
ASK = """
import json, sys, time, urllib.request
began = time.monotonic()
request = urllib.request.Request("http://127.0.0.1:" + sys.argv[1], sys.argv[2].encode(), {"Content-Type": "application/json"})
body = json.load(urllib.request.urlopen(request, timeout=300))
print(json.dumps({"seconds": time.monotonic() - began, "body": body}))
"""
GET = """
import sys, urllib.request
print(urllib.request.urlopen(sys.argv[1], timeout=5).read().decode())
"""
STATUS = """
import http.client, socket
connection = http.client.HTTPConnection("hotshelf")
connection.sock = socket.socket(socket.AF_UNIX)
connection.sock.connect("/run/hotshelf/hotshelf.sock")
connection.request("GET", "/v1/status")
print(connection.getresponse().read().decode())
"""
MAKE_BUCKET = """
import boto3, pathlib
keys = {name: pathlib.Path("/etc/hotshelf/origin", name).read_text() for name in ("access_key_id", "secret_access_key")}
client = boto3.client("s3", endpoint_url="%s", region_name="us-east-1", aws_access_key_id=keys["access_key_id"],
                      aws_secret_access_key=keys["secret_access_key"])
client.create_bucket(Bucket="weights")
"""


class Pod:
    def __init__(self, path: pathlib.Path) -> None:
        self.path = path

    def exec(self, container: str, *argv: str, check: bool = True) -> str:
        return engine.podman("exec", f"{NAME}-{container}", *argv, check=check)

    def python(self, container: str, code: str, *args: str) -> str:
        return self.exec(container, "python", "-c", code, *args)

    def draw(self, worker: str) -> tuple[str, float]:
        """The image's sha256, and how many seconds it took."""
        answer = json.loads(self.python(worker, ASK, str(WORKERS[worker][1]), json.dumps(JOB)))
        assert "error" not in answer["body"], answer["body"]
        (image,) = answer["body"]["images"]
        return image["sha256"], answer["seconds"]

    def leases(self) -> int:
        return int(json.loads(self.python("hotshelfd", STATUS))["leases"])

    def kill(self, container: str) -> None:
        """As the kernel would: from outside, and without a word."""
        os.kill(int(engine.inspect(f"{NAME}-{container}")["State"]["Pid"]), signal.SIGKILL)

    def restarts(self, container: str) -> int:
        return int(engine.inspect(f"{NAME}-{container}")["RestartCount"])

    def logs(self) -> str:
        return "".join(engine.podman("logs", f"{NAME}-{container}") for container in ("hotshelfd", *WORKERS))

    def answers(self, container: str, *argv: str) -> bool:
        try:
            self.exec(container, *argv)
        except AssertionError:
            return False
        return True


def say(capsys: pytest.CaptureFixture[str], line: str) -> None:
    with capsys.disabled():
        print(f"\n  {line}", end="", flush=True)


@pytest.fixture(scope="module")
def images() -> dict[str, int]:
    """Bytes of each image."""
    engine.prepare()
    engine.build("tests/pod/Dockerfile.origin", ORIGIN_IMAGE)
    built = {"daemon": engine.build("Dockerfile.daemon", IMAGES["hotshelf-daemon:0.1.0"]),
             "worker": engine.build("Dockerfile.worker", IMAGES["hotshelf-worker:0.1.0"])}  # fmt: skip
    return {**built, "base": engine.size(engine.BASE)}


@pytest.fixture(scope="module")
def pod(images: dict[str, int], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pod]:
    folder = tmp_path_factory.mktemp("pod")
    model = folder / "model"
    tiny.save_to("sd", model)
    for path in (folder, *folder.parents[:2], model, *model.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    path = folder / "pod.yaml"
    path.write_text(yaml.safe_dump_all(manifest.playable(model, name=NAME)))
    engine.play(path)
    try:
        pod = Pod(path)
        wait_until(lambda: pod.answers("hotshelfd", "hotshelf", "health"), timeout_s=SERVING_S, every_s=0.5, what="hotshelfd")
        wait_until(lambda: pod.answers("hotshelfd", "python", "-c", MAKE_BUCKET % ENDPOINT), timeout_s=60, every_s=1, what="S3")
        pod.exec("hotshelfd", "hotshelf", "push", "/model", "s3://weights/tiny")
        for worker, (_, port) in WORKERS.items():
            ask = (worker, "python", "-c", GET, f"http://127.0.0.1:{port}/health")
            wait_until(lambda: pod.answers(*ask), timeout_s=SERVING_S, every_s=1, what=worker)  # noqa: B023
        yield pod
    finally:
        engine.down(path)


def test_the_daemon_s_image_is_small_and_has_no_torch(images: dict[str, int], capsys: pytest.CaptureFixture[str]) -> None:
    added = images["daemon"] - images["base"]
    say(capsys, f"images: daemon {added / 1e6:.0f} MB over its base, worker {(images['worker'] - images['base']) / 1e6:.0f} MB")
    assert added < MOST_ADDED_BYTES
    listed = engine.podman("run", "--rm", "--entrypoint", "ls", IMAGES["hotshelf-daemon:0.1.0"], "/opt/hotshelf/lib/python3.11/site-packages")  # fmt: skip  # noqa: E501
    assert "boto3" in listed.split()
    assert "torch" not in listed.split()


def test_the_second_worker_is_warm_and_draws_the_same(pod: Pod, capsys: pytest.CaptureFixture[str]) -> None:
    (cold, cold_s), (warm, warm_s) = pod.draw("worker"), pod.draw("worker-b")
    _, again_s = pod.draw("worker")
    say(capsys, f"first image: cold {cold_s:.1f} s, a second worker {warm_s:.1f} s, its own again {again_s:.1f} s")
    assert cold == warm


def test_the_worker_is_of_another_uid_and_has_only_the_group_in_common(pod: Pod) -> None:
    daemon, worker = (set(pod.exec(name, "id", "-G").split()) for name in ("hotshelfd", "worker-b"))
    assert pod.exec("worker-b", "id", "-u").strip() == "10777"
    assert daemon & worker == {"10000"}
    assert pod.leases() >= 0


def test_no_worker_can_write_to_the_shelf_or_to_its_own_image(pod: Pod) -> None:
    for worker in WORKERS:
        for path in ("/shelf/store/x", "/shelf/x", "/run/hotshelf/x", "/opt/hotshelf/x", "/workspace/x"):
            assert not pod.answers(worker, "touch", path), path
        assert pod.answers(worker, "touch", f"/tmp/{worker}", f"/workspace/outputs/{worker}")
    assert not pod.answers("hotshelfd", "touch", "/opt/hotshelf/x")


def test_what_the_kubelet_asks_is_answered(pod: Pod) -> None:
    for path in ("livez", "readyz", "metrics"):
        assert pod.python("worker", GET, f"http://127.0.0.1:9464/{path}")


def test_a_killed_daemon_comes_back_and_its_workers_go_on(pod: Pod) -> None:
    before, _ = pod.draw("worker")
    restarts = engine.inspect(f"{NAME}-hotshelfd")["RestartCount"]
    pod.kill("hotshelfd")
    wait_until(
        lambda: engine.inspect(f"{NAME}-hotshelfd")["RestartCount"] > restarts, timeout_s=60, every_s=0.5, what="a restart"
    )
    wait_until(lambda: pod.answers("hotshelfd", "hotshelf", "health"), timeout_s=60, every_s=0.5, what="hotshelfd again")
    assert pod.draw("worker")[0] == before


def test_a_killed_worker_holds_nothing_and_comes_back(pod: Pod) -> None:
    pod.draw("worker-b")
    held = pod.leases()
    assert held
    pod.kill("worker-b")
    wait_until(lambda: pod.leases() < held, timeout_s=60, every_s=0.5, what="its lease to end")
    ask = ("worker-b", "python", "-c", GET, f"http://127.0.0.1:{WORKERS['worker-b'][1]}/health")
    wait_until(lambda: pod.answers(*ask), timeout_s=SERVING_S, every_s=1, what="the worker again")
    assert pod.draw("worker-b")


def test_the_seed_readme_s_docker_run_draws_with_only_its_variables(pod: Pod, tmp_path: pathlib.Path) -> None:
    """In one container, which starts its own daemon; the bucket is the pod's, reached through its network."""
    given = {"B2_BUCKET": "weights", "B2_REGION": "us-east-1", "B2_KEY_ID": KEY_ID, "B2_SECRET_KEY": SECRET,
             "PIPELINE_STORE": "/workspace/pretrained", "HF_TOKEN": "hf_none", "AWS_ENDPOINT_URL": ENDPOINT}  # fmt: skip
    variables = [word for name, value in given.items() for word in ("-e", f"{name}={value}")]
    tmp_path.chmod(0o777)
    where = ["--pod", NAME, "-v", f"{tmp_path}:/workspace/models"]
    image = IMAGES["hotshelf-worker:0.1.0"]
    done = engine.podman(
        "run", "--rm", *where, *variables, image, "python", "handler.py", "--test_input", json.dumps(JOB), timeout_s=300
    )
    answer = json.loads(done)
    assert [one["sha256"] for one in answer["images"]] == [pod.draw("worker")[0]]
    assert SECRET not in done


def test_nobody_tells_the_secret(pod: Pod) -> None:
    """Last: after all that has happened here."""
    shelf = pod.exec("hotshelfd", "sh", "-c", "cat /shelf/store/index/* | tr -cd '[:print:]'")
    said = pod.logs() + shelf + pod.exec("hotshelfd", "hotshelf", "config", "show")
    assert KEY_ID not in shelf
    assert SECRET not in said
