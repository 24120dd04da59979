"""A worker's process: what `load_pipeline` sets, says and asks for there, and that files and libraries come together."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from tests import objects
from tests.daemon_process import Daemon
from tests.pipelines.conftest import Library, source
from tests.servers.child import clean_environment
from tests.servers.recorder import Recorder
from tests.servers.seaweedfs import SeaweedFS

pytestmark = pytest.mark.torch
ROOT = pathlib.Path(__file__).parents[2]

WORKER = """
import json, os, socket, sys, time
began = time.monotonic()
asked = []

class Watched(socket.socket):
    def connect(self, address):
        if self.family != socket.AF_UNIX:
            asked.append(address)
            raise OSError(f"the network is not for workers: {address}")
        return super().connect(address)

socket.socket = Watched
socket.getaddrinfo = lambda *a, **k: (asked.append(a), (_ for _ in ()).throw(OSError("no names either")))[1]
import hotshelf

given = json.loads(sys.argv[1])
before = set(sys.modules)
pipe = hotshelf.load_pipeline(given["source"], loras=given["loras"], timeout=120)
from diffusers.utils import constants, logging
import huggingface_hub.constants as hub
import diffusers.utils.dynamic_modules_utils as dynamic
answer = {
    "heavy_before": sorted({"torch", "diffusers", "transformers"} & before),
    "environment": {n: os.environ.get(n) for n in given["names"]},
    "effect": [constants.DIFFUSERS_DISABLE_REMOTE_CODE, dynamic.DIFFUSERS_DISABLE_REMOTE_CODE, hub.HF_HUB_OFFLINE,
               hub.HF_HUB_DISABLE_TELEMETRY],
    "bars": logging.is_progress_bar_enabled(),
    "asked": asked,
    "phases": hotshelf.explain(pipe)["phases"],
    "ready": time.monotonic() - began,
}
print(json.dumps(answer))
"""
NAMES = ("DIFFUSERS_DISABLE_REMOTE_CODE", "HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY")


def work(daemon: Daemon, folder: str, loras: list[Any], *, first: str = "") -> tuple[dict[str, Any], str]:
    """A fresh worker's answer, and what it wrote to stderr. `first` is code that it runs before anything else."""
    argument = json.dumps({"source": folder, "loras": loras, "names": NAMES})
    done = subprocess.run(
        [sys.executable, "-W", "default", "-c", first + WORKER, argument],
        env={**daemon.environment, "OMP_NUM_THREADS": "1"}, cwd=ROOT, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer, done.stderr


def test_a_worker_is_hardened_quiet_and_offline(library: Library, shelf: Daemon) -> None:
    style = library.lora("sd", "kohya", seed=5)
    loras = [{"path": source(style), "scale": 0.5}]
    for first in ("", "import transformers, diffusers.utils.dynamic_modules_utils, huggingface_hub.constants\n"):
        answer, said = work(shelf, source(library.sd), loras, first=first)
        assert answer["environment"] == dict.fromkeys(NAMES, "1")
        assert answer["effect"] == [True] * 4
        assert answer["asked"] == []
        assert answer["bars"] is True, "the worker's own settings are put back"
        if not first:
            assert said == ""
            assert answer["heavy_before"] == []


def test_files_arrive_while_libraries_are_imported(
    library: Library, seaweedfs: SeaweedFS, make_daemon: Callable[..., Daemon], recorder: Recorder, bucket: str, prefix: str
) -> None:
    """Exact figures are `python -m tests.bench.ready`'s; here, that neither waits for the other."""
    tree = objects.read(library.sd)
    objects.put(seaweedfs, bucket, f"{prefix}/sd", tree)
    daemon = make_daemon(origins={"weed": seaweedfs.settings(bucket, endpoint_url=recorder.endpoint_url)})
    recorder.limit_rate(objects.size_of(tree) / 4.0)  # some four seconds, and importing takes about as long
    answer, _ = work(daemon, f"s3://{bucket}/{prefix}/sd", [])
    took = answer["phases"]
    assert took["acquire"] > 2.0
    assert took["import"] > 1.0
    assert took["wait"] < took["acquire"] - 0.5 * min(took["acquire"], took["import"])
    assert took["total"] <= 1.25 * (max(took["acquire"], took["import"]) + took["load"] + took["lora"] + took["attention"])


def test_without_torch_it_says_what_to_install(library: Library, shelf: Daemon, tmp_path: pathlib.Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('no torch here', name='torch')")
    (tmp_path / "diffusers.py").write_text("import torch")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "import hotshelf\n"
        f"try: hotshelf.load_pipeline({source(library.sd)!r})\n"
        "except hotshelf.errors.HotshelfError as error: print(error)"
    )
    environment = {**clean_environment(), **shelf.environment}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "load_pipeline needs torch (pip install 'hotshelf[worker]' in the worker's environment.)"
