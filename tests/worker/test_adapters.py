"""deploy/adapters: each runs as its framework runs it, in a process of its own, and answers with a picture of the model."""

from __future__ import annotations

import base64
import http.client
import json
import pathlib
import signal
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

import hotshelf.demo
from hotshelf_shared import __version__
from tests.servers.child import Child, clean_environment
from tests.servers.ports import free_ports
from tests.waiting import wait_until

pytestmark = pytest.mark.torch
ADAPTERS = pathlib.Path(__file__).parents[2] / "deploy" / "adapters"
DATA = pathlib.Path(hotshelf.demo.__file__).parent / "data"
PNG = b"\x89PNG\r\n"
JOB = {"prompt": "a red circle", "steps": 2, "seed": 7}
MOST_LINES = 40


@pytest.fixture
def environment(tmp_path: pathlib.Path) -> dict[str, str]:
    """The demo's model under the adapters' default name, and no daemon: the adapter starts one."""
    models = json.dumps({"sdxl": {"source": f"file://{DATA / 'model'}"}})
    return clean_environment(
        PIPELINE_STORE=str(tmp_path / "store"), XDG_RUNTIME_DIR=str(tmp_path), HOME=str(tmp_path),
        HOTSHELF_ROOTS=json.dumps([str(DATA)]), HOTSHELF_MODELS=models,
    )  # fmt: skip


@pytest.fixture
def port() -> int:
    return free_ports(1)[0]


def answer(port: int, method: str, path: str, body: Any = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        connection.request(method, path, json.dumps(body) if body is not None else None, {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def is_there(port: int, path: str) -> bool:
    try:
        return answer(port, "GET", path)[0] < 500
    except OSError:
        return False


@pytest.fixture
def serve(tmp_path: pathlib.Path, environment: dict[str, str]) -> Iterator[Any]:
    started: list[Child] = []

    def start(argv: list[str], name: str, port: int, ready: str) -> None:
        child = Child(argv, log=tmp_path / "log", env=environment, cwd=ADAPTERS / name)
        started.append(child)
        child.wait_ready(lambda: is_there(port, ready), timeout_s=120)

    yield start
    for child in started:  # asked first: workers in sessions of their own end with whoever is asked
        child.signal(signal.SIGTERM)
        try:
            child.wait(30)
        finally:
            child.kill()


def test_none_is_longer_than_a_screen() -> None:
    files = [*ADAPTERS.glob("*/*.py"), ADAPTERS.parent / "handler.py"]
    assert len(files) == 4
    for path in files:
        assert len(path.read_text().splitlines()) <= MOST_LINES, path


def test_a_plain_aiohttp_server(serve: Any, environment: dict[str, str], port: int) -> None:
    environment["PORT"] = str(port)
    serve([sys.executable, "server.py"], "aiohttp", port, "/")
    status, png = answer(port, "POST", "/", JOB)
    assert (status, png[:6]) == (200, PNG)
    assert answer(port, "POST", "/", JOB)[1] == png
    status, said = answer(port, "POST", "/", {"promt": "a red circle"})
    assert status == 400
    assert b"promt" in said


def test_a_bentoml_service(serve: Any, environment: dict[str, str], port: int, tmp_path: pathlib.Path) -> None:
    environment |= {"BENTOML_HOME": str(tmp_path / "bento"), "BENTOML_DO_NOT_TRACK": "1"}
    argv = [sys.executable, "-m", "bentoml", "serve", "service:Painter", "--host", "127.0.0.1", "--port", str(port)]
    serve(argv, "bentoml", port, "/readyz")
    status, png = answer(port, "POST", "/draw", JOB)
    assert (status, png[:6]) == (200, PNG)
    assert answer(port, "POST", "/draw", {})[0] == 400


def test_a_cog_predictor(serve: Any, environment: dict[str, str], port: int) -> None:
    """As in its image, where `python` is the one that has all this and `cog build` sets COG_… from cog.yaml."""
    predictor = yaml.safe_load((ADAPTERS / "cog" / "cog.yaml").read_text())["predict"]
    path = f"{pathlib.Path(sys.executable).parent}:{environment['PATH']}"
    environment |= {"PORT": str(port), "COG_PREDICT_TYPE_STUB": predictor, "PATH": path}
    serve([sys.executable, "-m", "cog.server.http", "--host", "127.0.0.1"], "cog", port, "/health-check")
    wait_until(lambda: json.loads(answer(port, "GET", "/health-check")[1])["status"] == "READY", timeout_s=120)
    status, body = answer(port, "POST", "/predictions", {"input": JOB})
    assert status == 200, body
    output = json.loads(body)["output"]
    assert base64.b64decode(output.partition(",")[2]).startswith(PNG)
    assert json.loads(answer(port, "POST", "/predictions", {"input": {"steps": 2}})[1])["status"] == "failed"


def test_cog_installs_this_version() -> None:
    assert f"hotshelf[worker,daemon]=={__version__}" in (ADAPTERS / "cog" / "cog.yaml").read_text()
