"""From the start of a worker to a pipeline that is ready: a fresh process beside one forked from a zygote.

    python -m tests.bench.prewarm [--rounds N] [--gigabytes 2]

A StableDiffusionPipeline of float16 weights on the shelf and in the page cache. Interleaved; medians of the
rounds and of their ratios. `process` is the same without a pipeline: what a script costs that does nothing.
"""

from __future__ import annotations

import argparse
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

from tests.bench.results import save, spread
from tests.daemon_process import Daemon
from tests.pipelines import tiny
from tests.worker.prewarmed import HOTSHELF, zygote

_READY = (
    "import sys, hotshelf; pipe = hotshelf.load_pipeline(sys.argv[1], dtype='float16', snapshot=False); print('{}', flush=True)"
)


def large(folder: pathlib.Path, gigabytes: float) -> int:
    """Writes it; its size in bytes. As deep as it takes, as wide as Stable Diffusion is."""
    import torch
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel

    pipe, blocks = tiny.make("sd", folder.with_name("parts")), 1
    with torch.device("meta"):
        while (unet := _unet(UNet2DConditionModel, blocks)).num_parameters() * 2 < gigabytes * 1e9:
            blocks += 1
    unet = unet.to(torch.float16).to_empty(device="cpu")
    for weights in unet.parameters():
        weights.data.fill_(0.01)
    pipe = StableDiffusionPipeline(**{**pipe.components, "unet": unet}, requires_safety_checker=False).to(torch.float16)
    pipe.save_pretrained(folder)
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _unet(cls: Any, blocks: int) -> Any:
    return cls(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=blocks, block_out_channels=(320, 640, 1280),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"), cross_attention_dim=32, attention_head_dim=8,
    )  # fmt: skip


def seconds(argv: Sequence[str], env: Mapping[str, str], cwd: pathlib.Path) -> tuple[float, str]:
    """Until its line, and the line."""
    began = time.monotonic()
    with subprocess.Popen(argv, env=env, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as child:
        line = child.stdout.readline() if child.stdout else ""
        took = time.monotonic() - began
        child.communicate()
    if child.returncode or not line:
        raise SystemExit(f"the worker failed: {argv}")
    return took, line.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hsb-") as name:
        folder = pathlib.Path(name)
        size = large(folder / "model", given.gigabytes)
        print(f"a StableDiffusionPipeline of {size / 1e9:.2f} GB")
        models = {"large": {"source": f"file://{folder}/model"}}
        with Daemon(folder / "d", roots=[str(folder)], models=models) as daemon, zygote(folder, bare=False) as warm:
            if daemon.acquire("large").status != 200:
                raise SystemExit(daemon.log_text)
            environment = {**daemon.environment, "HOTSHELF_ZYGOTE": str(warm.socket)}
            scripts = {"ready": warm.script(_READY, "ready.py"), "process": warm.script("print('{}')", "nothing.py")}
            ways = {"plain": [sys.executable], "forked": [*HOTSHELF, "worker"]}
            taken: dict[str, list[float]] = {f"{way} {what}": [] for way in ways for what in scripts}
            for number in range(given.rounds + 1):  # the first fills the page cache
                for what, script in scripts.items():
                    for way in list(ways) if number % 2 else list(ways)[::-1]:
                        took, _ = seconds([*ways[way], script, "large"], environment, warm.folder)
                        if number:
                            taken[f"{way} {what}"].append(took)
            ratios = [ours / plain for ours, plain in zip(taken["forked ready"], taken["plain ready"], strict=True)]
            for what, values in taken.items():
                print(f"{what}: {spread(values)} s (median, quartiles)")
            print(f"ratio: median {statistics.median(ratios):.3f}, from {min(ratios):.3f} to {max(ratios):.3f}; target 0.1")
            save(
                "prewarm", {"bytes": size, "ratio": spread(ratios), **{what: spread(values) for what, values in taken.items()}}
            )


if __name__ == "__main__":
    main()
