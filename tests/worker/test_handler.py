"""The handler as its platforms run it: a process of its own, jobs in, pictures and typed errors out."""

from __future__ import annotations

import http.client
import json
import pathlib
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

import hotshelf.demo
from tests.daemon_process import Daemon
from tests.servers.child import Child, clean_environment
from tests.servers.ports import free_ports
from tests.servers.seaweedfs import SeaweedFS

pytestmark = pytest.mark.torch
DATA = pathlib.Path(hotshelf.demo.__file__).parent / "data"
ROOT = pathlib.Path(__file__).parents[2]
QUICK = {"num_inference_steps": 2, "guidance_scale": 2.0}


@pytest.fixture(scope="module")
def bucket_with_models(seaweedfs: SeaweedFS) -> str:
    """The demo's model as the folder `shapes-h`, a LoRA as an object, in a bucket of their own."""
    name = "handler-weights"
    with seaweedfs.client() as client:
        client.create_bucket(Bucket=name)
        for path in (DATA / "model").rglob("*"):
            if path.is_file():
                client.put_object(Bucket=name, Key=f"shapes/{path.relative_to(DATA / 'model')}", Body=path.read_bytes())
        client.put_object(Bucket=name, Key="loras/pink.safetensors", Body=(DATA / "loras/pink/pink.safetensors").read_bytes())
    return name


@pytest.fixture
def seed_environment(seaweedfs: SeaweedFS, bucket_with_models: str, tmp_path: pathlib.Path) -> dict[str, str]:
    """Only the variables of the seed README, and where its S3 server is."""
    return clean_environment(
        B2_BUCKET=bucket_with_models,
        B2_REGION="us-east-1",
        B2_KEY_ID=seaweedfs.access_key_id,
        B2_SECRET_KEY=seaweedfs.secret_access_key,
        PIPELINE_STORE=str(tmp_path / "pretrained"),
        AWS_ENDPOINT_URL=seaweedfs.endpoint_url,
        XDG_RUNTIME_DIR=str(tmp_path),
    )


def run(environment: dict[str, str], folder: pathlib.Path, *argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *argv], env=environment, cwd=folder, capture_output=True, text=True, timeout=240)


def test_the_seed_quick_start_draws_with_nothing_but_its_variables(
    seed_environment: dict[str, str], tmp_path: pathlib.Path
) -> None:
    loras = [{"path": "loras/pink.safetensors", "scale": 0.8}]
    job = {"id": "one", "input": {"model": "shapes", "prompt": "a red circle", "loras": loras, **QUICK}}
    done = run(seed_environment, tmp_path, str(ROOT / "deploy" / "handler.py"), "--test_input", json.dumps(job))
    assert done.returncode == 0, done.stdout + done.stderr
    answer = json.loads(done.stdout)
    assert pathlib.Path(tmp_path / answer["image"]).read_bytes().startswith(b"\x89PNG")
    assert {"acquire", "import", "load", "lora", "draw"} <= answer["phases"].keys()
    assert answer["explain"]["loras"][0]["scale"] == 0.8
    assert seed_environment["B2_SECRET_KEY"] not in done.stdout + done.stderr


@pytest.fixture
def served(seaweedfs: SeaweedFS, bucket_with_models: str, tmp_path: pathlib.Path) -> Iterator[tuple[int, Daemon]]:
    """A handler serving HTTP, and its daemon."""
    origins = {"weed": seaweedfs.settings(bucket_with_models)}
    models = {"shapes": {"source": f"s3://{bucket_with_models}/shapes"}}
    with Daemon(tmp_path / "d", origins=origins, models=models) as daemon:
        (port,) = free_ports(1)
        argv = [sys.executable, "-m", "hotshelf.handler", "--serve", f"127.0.0.1:{port}"]
        environment = {**daemon.environment, "HOTSHELF_AUTOSTART": "0", "HOTSHELF_OUTPUT_DIR": str(tmp_path / "out")}
        child = Child(argv, log=tmp_path / "handler.log", env=environment, cwd=tmp_path)
        try:
            child.wait_ready(lambda: ask(port, "GET", "/health")[0] == 200)
            yield port, daemon
        finally:
            child.kill()


def ask(port: int, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=240)
    try:
        connection.request(method, path, None if body is None else json.dumps(body))
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def test_one_process_serves_many_jobs_and_every_bad_one_is_a_typed_error(served: tuple[int, Daemon]) -> None:
    port, daemon = served
    good = {"id": "g", "input": {"model": "shapes", "prompt": "a blue ring", **QUICK}}
    bad: list[tuple[dict[str, Any], str]] = [
        ({"input": {"model": "shapes"}}, "invalid_request"),
        ({"input": {"model": "shapes", "prompt": "x", "promt": "x"}}, "invalid_request"),
        ({"input": {"model": "nowhere", "prompt": "x"}}, "not_found"),
        ({"input": {"model": "shapes", "prompt": "x", "loras": [{"path": "/no/such.safetensors"}]}}, "not_found"),
        ({"input": {"model": "shapes", "prompt": "x", "dtype": "int3"}}, "invalid_request"),
        ({"input": {"model": "shapes", "prompt": "x", "guidance_scale": "strong"}}, "invalid_request"),
        ({"input": {"model": "shapes", "prompt": "x", "num_inference_steps": 0}}, "invalid_request"),
        *(
            ({"input": {"model": "shapes", "prompt": "x", "parameters": {"output_type": kind}}}, "invalid_request")
            for kind in ("np", "latent", "pt")
        ),
        ({"nothing": 1}, "invalid_request"),
    ]
    status, first = ask(port, "POST", "/", good)
    assert status == 200, first
    for job, code in bad:
        status, answer = ask(port, "POST", "/", job)
        assert status >= 400, job
        assert answer["error"]["code"] == code, (job, answer)
        assert answer["error"]["hint"]
    status, again = ask(port, "POST", "/", good)
    assert again["images"][0]["sha256"] == first["images"][0]["sha256"]
    assert again["explain"]["served_from"] == "memory"
    daemon.kill9()
    status, answer = ask(port, "POST", "/", {"input": {"model": "other", "prompt": "x", "timeout": 0.5}})
    assert answer["error"]["code"] == "daemon_unavailable"
    daemon.start()
    assert ask(port, "POST", "/", good)[0] == 200


def test_a_job_that_is_no_json_is_answered_and_exits_with_2(tmp_path: pathlib.Path) -> None:
    done = run(clean_environment(HOTSHELF_AUTOSTART="0"), tmp_path, "-m", "hotshelf.handler", "--test_input", "{nope")
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"]["code"] == "invalid_request"
