"""The zygote as it is used: torch and diffusers imported, nothing computed, and workers that draw."""

from __future__ import annotations

import hashlib
import json
import pathlib
from collections.abc import Iterator

import pytest

import hotshelf.demo
from hotshelf.errors import BadConfiguration
from hotshelf.prewarm import preload

from .prewarmed import Prewarmed, zygote

pytestmark = pytest.mark.torch
MODEL = pathlib.Path(hotshelf.demo.__file__).parent / "data" / "model"

STATE = """
import sys
imported = [name for name in ("torch", "diffusers", "transformers", "peft") if name in sys.modules]
import json, logging, os, torch, numpy
json.dump({
    "imported": imported, "threads": len(os.listdir("/proc/self/task")), "seed": torch.initial_seed(),
    "cuda": [torch.cuda.is_initialized(), torch.cuda._is_in_bad_fork()], "torch threads": torch.get_num_threads(),
    "handlers": len(logging.root.handlers), "numpy": numpy.random.rand(), "torch": torch.rand(1).item(),
    "check": os.environ.get("PYTORCH_NVML_BASED_CUDA_CHECK"),
}, sys.stdout)
"""
DRAW = """
import hashlib, json, sys, threading, torch, hotshelf
import huggingface_hub.constants
torch.set_num_threads(2)
online = huggingface_hub.constants.HF_HUB_OFFLINE
pipe = hotshelf.load_pipeline(sys.argv[1], snapshot=False)
pipe.set_progress_bar_config(disable=True)
image = pipe("a red circle", num_inference_steps=2, generator=torch.Generator("cpu").manual_seed(7)).images[0]
torch.rand(512, 512) @ torch.rand(512, 512)
print(json.dumps({
    "image": hashlib.sha256(image.tobytes()).hexdigest(), "threads": torch.get_num_threads(), "hardened before": online,
    "import": hotshelf.explain(pipe)["phases"]["import"], "hardened": huggingface_hub.constants.HF_HUB_OFFLINE,
}))
"""


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prewarmed]:
    with zygote(tmp_path_factory.mktemp("z"), bare=False) as running:
        yield running
        assert running.child.process.poll() is None, running.child.log_text()


def test_it_has_the_libraries_one_thread_no_cuda_and_draws_numbers_of_its_own(warm: Prewarmed) -> None:
    script = warm.script(STATE, "state.py")
    first, second = (json.loads(warm.run(script).stdout) for _ in range(2))
    plain = json.loads(warm.plainly(script).stdout)
    assert first["imported"] == ["torch", "diffusers", "transformers", "peft"]
    assert first["threads"] == 1
    assert not {first[name] for name in ("numpy", "seed", "torch")} & {second[name] for name in ("numpy", "seed", "torch")}
    for fresh in ("cuda", "torch threads", "handlers", "check"):
        assert first[fresh] == plain[fresh], fresh


def test_a_worker_draws_the_picture_that_a_plain_one_draws_with_two_threads(warm: Prewarmed) -> None:
    script = warm.script(DRAW, "draw.py")
    done = warm.run(script, str(MODEL), timeout=240)
    assert (done.returncode, done.stderr) == (0, "")
    ours, plain = json.loads(done.stdout), json.loads(warm.plainly(script, str(MODEL), timeout=240).stdout)
    assert {**ours, "import": 0} == {**plain, "import": 0}
    assert ours["threads"] == 2
    assert ours["import"] < 0.5


def test_the_handler_answers_from_a_fork(warm: Prewarmed, tmp_path: pathlib.Path) -> None:
    job = {"id": "one", "input": {"model": str(MODEL), "prompt": "a red circle", "num_inference_steps": 2}}
    out = {"HOTSHELF_OUTPUT_DIR": str(tmp_path), "HOTSHELF_AUTOSTART": "0"}
    done = warm.run("-m", "hotshelf.handler", "--test_input", json.dumps(job), env=out, timeout=240)
    assert (done.returncode, done.stderr) == (0, "")
    image = json.loads(done.stdout)["images"][0]
    assert hashlib.sha256(pathlib.Path(image["path"]).read_bytes()).hexdigest() == image["sha256"]


def test_what_cannot_be_preloaded_is_said(warm: Prewarmed) -> None:
    with pytest.raises(BadConfiguration, match="no_such_module"):
        preload.also(["no_such_module"])
    warm.script("import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()", "threaded.py")
    code = "import hotshelf.prewarm.preload as p, threaded; p.settle()"
    done = warm.plainly("-c", code)
    assert "BadConfiguration: what was imported has started 1 threads" in done.stderr
