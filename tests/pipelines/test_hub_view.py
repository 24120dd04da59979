"""transformers and diffusers, unmodified, on a shelf mounted read-only: `HF_HUB_CACHE` is all they get."""

from __future__ import annotations

import pathlib
import subprocess
import sys
from collections.abc import Iterator

import pytest

import hotshelf.demo
from tests import objects
from tests.conftest import BUCKET
from tests.daemon.conftest import MakeDaemon
from tests.daemon.looking import granted
from tests.servers.child import clean_environment
from tests.servers.seaweedfs import SeaweedFS

DATA = pathlib.Path(hotshelf.demo.__file__).parent / "data"
pytestmark = [pytest.mark.torch, pytest.mark.root]


@pytest.fixture
def environment(make_daemon: MakeDaemon, seaweedfs: SeaweedFS, prefix: str, tmp_path: pathlib.Path) -> Iterator[dict[str, str]]:
    """For a worker that sees the shelf of a daemon, which has the demo's model, through a read-only mount, and nothing else."""
    objects.put(seaweedfs, BUCKET, prefix, objects.published(objects.read(DATA / "model")))
    models = {"demo": {"source": f"s3://{BUCKET}/{prefix}", "view": True}}
    daemon = make_daemon(origins={"weed": seaweedfs.settings(BUCKET)}, models=models)
    granted(daemon.acquire("demo"))
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    subprocess.run(["mount", "--bind", daemon.store, mounted], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", mounted], check=True)
        yield clean_environment(HOME=str(tmp_path), HF_HUB_CACHE=str(mounted / "hub"), HF_HUB_OFFLINE="1")
    finally:
        subprocess.run(["umount", mounted], check=True)


def ran(code: str, environment: dict[str, str]) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


def test_a_pipeline_is_loaded_by_its_repository(environment: dict[str, str]) -> None:
    code = """
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained("shelf/demo")
print(type(pipe).__name__, sum(parameter.numel() for parameter in pipe.unet.parameters()) > 1000)
"""
    assert ran(code, environment) == "StableDiffusionPipeline True"


def test_a_model_of_transformers_is_loaded_by_its_repository(environment: dict[str, str]) -> None:
    code = """
from transformers import AutoModel, CLIPTokenizer
model = AutoModel.from_pretrained("shelf/demo", subfolder="text_encoder")
CLIPTokenizer.from_pretrained("shelf/demo", subfolder="tokenizer")
print(model.config.model_type)
"""
    assert ran(code, environment) == "clip_text_model"
