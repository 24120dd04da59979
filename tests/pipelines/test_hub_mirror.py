"""transformers and diffusers, unmodified, through the hub's mirror: with nothing cached, and with the hub away."""

from __future__ import annotations

import pathlib
import subprocess
import sys
import sysconfig
from collections.abc import Iterator

import pytest

import hotshelf.demo
from tests import objects
from tests.daemon.conftest import MakeDaemon
from tests.daemon_process import Daemon
from tests.servers.child import clean_environment
from tests.servers.hub import Hub
from tests.servers.ports import free_ports

pytestmark = pytest.mark.torch
DATA, TOKEN = pathlib.Path(hotshelf.demo.__file__).parent / "data", "a token of the mirror's own"
PIPELINE = "from diffusers import DiffusionPipeline as P; print(type(P.from_pretrained('org/demo')).__name__)"
MODEL = "from transformers import AutoModel as M; print(type(M.from_pretrained('org/demo', subfolder='text_encoder')).__name__)"


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as running:
        running.push("org/demo", objects.read(DATA / "model"))
        yield running


@pytest.fixture
def daemon(make_daemon: MakeDaemon, hub: Hub) -> Daemon:
    return make_daemon(
        hf={"endpoint": hub.endpoint_url}, hub_mirror={"token": TOKEN}, page_listen=f"127.0.0.1:{free_ports(1)[0]}"
    )


def somebody(daemon: Daemon, folder: pathlib.Path) -> dict[str, str]:
    """Who has a cache of its own, with nothing in it, and the mirror for a hub."""
    mirror = {"HF_ENDPOINT": f"http://{daemon.settings['page_listen']}", "HF_TOKEN": TOKEN}
    return clean_environment(HOME=str(folder), HF_HOME=str(folder / "hf"), **mirror)


def ran(argv: list[str], environment: dict[str, str]) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=240, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def check(environment: dict[str, str]) -> None:
    assert "StableDiffusionPipeline" in ran([sys.executable, "-c", PIPELINE], environment)
    assert "CLIPTextModel" in ran([sys.executable, "-c", MODEL], environment)
    assert "org/demo" in ran([f"{sysconfig.get_path('scripts')}/hf", "cache", "ls"], environment)


def test_pipelines_and_models_are_loaded_with_nothing_cached_and_with_the_hub_away(
    daemon: Daemon, hub: Hub, tmp_path: pathlib.Path
) -> None:
    check(somebody(daemon, tmp_path / "first"))
    with hub.down():
        daemon.restart()
        check(somebody(daemon, tmp_path / "second"))
