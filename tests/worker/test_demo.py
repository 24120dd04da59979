"""The demo as a newcomer runs it, and whether its pictures show what the prompts say."""

from __future__ import annotations

import json
import pathlib
import signal
import subprocess
import sys

import pytest

import hotshelf.demo
from hotshelf.demo.stage import LORAS
from tests.servers.child import clean_environment
from tests.waiting import wait_until

DATA = pathlib.Path(hotshelf.demo.__file__).parent / "data"


def demo(folder: pathlib.Path, *argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "hotshelf", "demo", *argv], cwd=folder, env=clean_environment(TMPDIR=str(folder)),
        capture_output=True, text=True, timeout=280,
    )  # fmt: skip


def left_running(folder: pathlib.Path) -> list[str]:
    """Command lines of processes that speak of the demo's folder."""
    found = []
    for entry in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(folder) in line:
            found.append(line)
    return found


def test_the_light_demo_needs_no_torch_works_twice_and_leaves_nothing_running(tmp_path: pathlib.Path) -> None:
    for _ in range(2):
        done = demo(tmp_path, "--lite", "--format", "json")
        assert done.returncode == 0, done.stderr
        measured = json.loads(done.stdout)
        assert measured["cold"]["link_mb"] > 20
        assert measured["warm"]["link_mb"] == 0
        assert left_running(tmp_path) == []
    assert list(tmp_path.glob("hotshelf-demo-*")) == []


def test_an_interrupted_demo_leaves_no_process_and_no_socket(tmp_path: pathlib.Path) -> None:
    child = subprocess.Popen(
        # What runs in a shell's background inherits deafness to SIGINT.
        ["env", "--default-signal=INT", sys.executable, "-m", "hotshelf", "demo", "--lite"],
        cwd=tmp_path, env=clean_environment(TMPDIR=str(tmp_path)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        wait_until(lambda: list(tmp_path.glob("hotshelf-demo-*/hotshelfd.log")), timeout_s=60)
    finally:
        child.send_signal(signal.SIGINT)
        said, _ = child.communicate(timeout=60)
    assert child.returncode == 130, said
    assert left_running(tmp_path) == []
    assert list(tmp_path.glob("hotshelf-demo-*")) == []


@pytest.mark.torch
def test_the_demo_draws_cold_warm_and_with_a_lora(tmp_path: pathlib.Path) -> None:
    done = demo(tmp_path, "--out", "shown", "--format", "json")
    assert done.returncode == 0, done.stderr
    measured, out = json.loads(done.stdout), tmp_path / "shown"
    assert (out / "cold.png").read_bytes() == (out / "warm.png").read_bytes()
    assert (out / "cold.png").read_bytes() != (out / "lora.png").read_bytes()
    assert measured["cold"]["phases"]["fetch"] > measured["warm"]["phases"].get("fetch", 0)
    assert (out / "side-by-side.png").stat().st_size > 1000
    assert (out / "waterfall.png").stat().st_size > 1000
    assert (out / "shelf/index/index.db").is_file()
    assert left_running(tmp_path) == []


@pytest.mark.torch
def test_every_prompt_of_the_vocabulary_draws_its_colour_and_shape() -> None:
    from diffusers import DiffusionPipeline

    from hotshelf.demo.training.measure import right

    pipe = DiffusionPipeline.from_pretrained(DATA / "model", local_files_only=True, use_safetensors=True)
    pipe.set_progress_bar_config(disable=True)
    count, wrong = right(pipe, "plain", seed=0)
    assert count >= 23, wrong


@pytest.mark.torch
@pytest.mark.parametrize("name", LORAS)
def test_each_lora_does_what_its_name_promises(name: str) -> None:
    from diffusers import DiffusionPipeline

    from hotshelf.demo.training.measure import right

    pipe = DiffusionPipeline.from_pretrained(DATA / "model", local_files_only=True, use_safetensors=True)
    pipe.set_progress_bar_config(disable=True)
    pipe.load_lora_weights(DATA / "loras" / name, weight_name=f"{name}.safetensors", adapter_name=name)
    pipe.set_adapters([name], [0.8])
    count, wrong = right(pipe, name, seed=0)
    assert count >= 20, wrong
