"""What a pipeline snapshot and the memory tier save, on a pipeline as large as Stable Diffusion 1.5.

    python -m tests.bench.build [--rounds N]

Two rank-16 LoRAs fused and a cast to float16: the first worker builds, the next ones load what it kept. A page-cache-warm
load of the 2 GB result beside plain `from_pretrained` on the same files. Eight workers that share its weights by way of
the page cache. Ten LoRA variants in one process. Imports are made before the clock starts.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from typing import Any

from tests.daemon_process import Daemon
from tests.pipelines import tiny, tiny_loras

ROOT = pathlib.Path(__file__).parents[2]
_TIMED = """
import json, os, pathlib, re, resource, sys, time
import torch, diffusers, peft, transformers, hotshelf
from transformers import CLIPTextModel, CLIPTokenizer
from diffusers import StableDiffusionPipeline, UNet2DConditionModel, AutoencoderKL, DDIMScheduler
from diffusers.utils import logging; logging.disable_progress_bar(); logging.set_verbosity_error()
given = json.loads(sys.argv[1])
hotshelf.load_pipeline, hotshelf.explain

def mapped():
    "Bytes of this process's share of the store's files, and of memory that is its own."
    shared = own = 0
    for block in re.split(r"(?m)^(?=[0-9a-f]+-[0-9a-f]+ )", pathlib.Path("/proc/self/smaps").read_text()):
        pss = int((re.search(r"^Pss: +(\\d+)", block, re.M) or [0, 0])[1]) * 1024
        if given["store"] in block.split("\\n")[0]: shared += pss
        else: own += pss
    return shared, own

def touch(pipe):
    "Every page of the weights, as drawing would."
    for part in (pipe.unet, pipe.vae, pipe.text_encoder):
        for tensor in part.parameters(): tensor.view(-1)[::1024].sum()

def say(**body):
    print(json.dumps(body), flush=True)

before, cpu, began = mapped(), time.process_time(), time.monotonic()
"""
_OURS = (
    _TIMED
    + """
pipe = hotshelf.load_pipeline(given["source"], **given["order"])
took, used = time.monotonic() - began, time.process_time() - cpu
touch(pipe); after = mapped()
say(seconds=took, cpu_s=used, how=hotshelf.explain(pipe), shared=after[0], own=after[1] - before[1])
if given.get("together"):
    sys.stdin.readline()
    now = mapped()
    say(shared=now[0], own=now[1] - before[1])
    sys.stdin.readline()
"""
)
_PLAIN = (
    _TIMED
    + """
pipe = diffusers.DiffusionPipeline.from_pretrained(given["source"], torch_dtype=torch.float16, use_safetensors=True)
took, used = time.monotonic() - began, time.process_time() - cpu
touch(pipe); after = mapped()
say(seconds=took, cpu_s=used, shared=after[0], own=after[1] - before[1])
"""
)
_VARIANTS = (
    _TIMED
    + """
weights = given["order"].pop("loras")
first = hotshelf.load_pipeline(given["source"], **given["order"]); touch(first)
base = sum(mapped()) - sum(before)
pipes = [hotshelf.load_pipeline(given["source"], loras=[one], **given["order"]) for one in weights]
for pipe in pipes: touch(pipe)
say(base=base, whole=sum(mapped()) - sum(before))
"""
)


def worker(code: str, daemon: Daemon, argument: Mapping[str, Any]) -> subprocess.Popen[str]:
    body = {**argument, "store": str(daemon.store)}
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", code, json.dumps(body)], env=daemon.environment, cwd=ROOT,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip


def said(child: subprocess.Popen[str]) -> dict[str, Any]:
    line = child.stdout.readline() if child.stdout else ""
    if not line:
        raise SystemExit(f"a worker failed with {child.wait()}")
    body: dict[str, Any] = json.loads(line)
    return body


def run(code: str, daemon: Daemon, argument: Mapping[str, Any]) -> dict[str, Any]:
    with worker(code, daemon, argument) as child:
        body = said(child)
        child.communicate()
    return body


def first_and_second(daemon: Daemon, source: str, loras: list[Any], rounds: int) -> str:
    """The revision's key, once the first worker has kept it."""
    order = {"loras": loras, "lora_mode": "fuse", "dtype": "float16"}
    run(_OURS, daemon, {"source": source, "order": {**order, "snapshot": False}})  # onto the shelf and into the page cache
    before = daemon.call("GET", "/v1/status").body["held_bytes"]["ready"]
    first = run(_OURS, daemon, {"source": source, "order": order})
    added = daemon.call("GET", "/v1/status").body["held_bytes"]["ready"] - before
    seconds = [run(_OURS, daemon, {"source": source, "order": order}) for _ in range(rounds)]
    assert (first["how"]["served_from"], seconds[0]["how"]["served_from"]) == ("built", "snapshot")
    second = statistics.median(one["seconds"] for one in seconds)
    print(
        f"fused and cast: first worker {first['seconds']:.2f} s ({first['how']['phases']['load']:.2f} building),"
        f" next ones {second:.3f} s (median of {rounds}): {second / first['seconds']:.3f} of it; target 0.15;"
        f" the snapshot added {added / 1e6:,.0f} MB"
    )
    return str(first["how"]["pipeline_key"])


def warm_load(daemon: Daemon, key: str, rounds: int) -> None:
    """The same files by hotshelf and by plain diffusers, interleaved."""
    path = daemon.store / daemon.call("GET", f"/v1/pipelines/{key}").body["path"]
    order = {"dtype": "float16", "snapshot": False}
    ways = {"plain": (_PLAIN, str(path)), "ours": (_OURS, f"pipeline:{key}")}
    taken = []
    for number in range(rounds + 1):
        names = list(ways) if number % 2 else list(ways)[::-1]
        taken.append({name: run(ways[name][0], daemon, {"source": ways[name][1], "order": order}) for name in names})
    del taken[0]
    for what in ("seconds", "cpu_s"):
        ratios = sorted(one["ours"][what] / one["plain"][what] for one in taken)
        plain, ours = (statistics.median(one[name][what] for one in taken) for name in ways)
        print(
            f"warm load {what}: plain {plain:.3f}, ours {ours:.3f} (medians); ratio: median {statistics.median(ratios):.3f},"
            f" from {ratios[0]:.3f} to {ratios[-1]:.3f}; target 1.1"
        )


def shared(daemon: Daemon, key: str, size: int, count: int = 8) -> None:
    argument = {"source": f"pipeline:{key}", "order": {"dtype": "float16", "snapshot": False}, "together": True}
    children = [worker(_OURS, daemon, argument) for _ in range(count)]
    for child in children:
        said(child)
    tell(children)
    seen = [said(child) for child in children]
    tell(children)
    for child in children:
        child.communicate()
    pss = sum(one["shared"] for one in seen)
    print(
        f"{count} workers: sum of PSS of the weights {pss / 1e6:,.0f} MB of {size / 1e6:,.0f} MB: {pss / size:.3f};"
        f" target 1.05; each worker's own memory grew by {statistics.median(one['own'] for one in seen) / 1e6:,.0f} MB"
    )


def tell(children: list[subprocess.Popen[str]]) -> None:
    for child in children:
        if child.stdin:
            child.stdin.write("\n")
            child.stdin.flush()


def variants(daemon: Daemon, key: str, files: list[pathlib.Path]) -> None:
    loras = [{"path": f"file://{path}", "scale": 0.5} for path in files]
    argument = {"source": f"pipeline:{key}", "order": {"dtype": "float16", "snapshot": False, "loras": loras}}
    found = run(_VARIANTS, daemon, argument)
    adapters = sum(path.stat().st_size for path in files)
    print(
        f"{len(files)} LoRA variants in one process: {found['whole'] / 1e6:,.0f} MB; base {found['base'] / 1e6:,.0f} MB and"
        f" adapters {adapters / 1e6:,.0f} MB: {found['whole'] / (found['base'] + adapters):.3f}; target 1.1"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    import torch

    with tempfile.TemporaryDirectory(prefix="hsb-") as name:
        root = pathlib.Path(name) / "published"
        base = tiny.save_to("sd15", root / "base")
        model = torch.nn.Module()
        model.unet = tiny.make("sd15", root / "shape").unet
        loras = []
        for seed in range(10):
            loras.append(root / f"lora{seed}.safetensors")
            loras[-1].write_bytes(tiny_loras.lora(model, "diffusers", seed=seed, rank=16, dtype=torch.float16))
        del model
        print(f"a StableDiffusionPipeline of {sum(p.stat().st_size for p in base.rglob('*.safetensors')) / 1e6:,.0f} MB")
        with Daemon(pathlib.Path(name) / "d", roots=[str(root)], revalidate_s=3600) as daemon:
            two = [{"path": f"file://{path}", "scale": 0.5} for path in loras[:2]]
            key = first_and_second(daemon, f"file://{base}", two, given.rounds)
            path = daemon.store / daemon.call("GET", f"/v1/pipelines/{key}").body["path"]
            size = sum(one.stat().st_size for one in path.rglob("*.safetensors"))
            warm_load(daemon, key, given.rounds)
            shared(daemon, key, size)
            variants(daemon, key, loras)


if __name__ == "__main__":
    main()
