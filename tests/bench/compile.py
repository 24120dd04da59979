"""To the first image of a fresh process with an empty inductor directory: compiling all, with a bundle, with a package.

    python -m tests.bench.compile [--rounds N] [--mode full]

A tiny random Stable Diffusion on the CPU. Each round has a shelf of its own: cold, then with what that left there; the package
is built once, ahead. Interleaved; seconds from the call of `load_pipeline`, torch and diffusers being imported, and from the
start of the process; medians, and medians of the ratios, round by round.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

from tests.daemon_process import Daemon
from tests.pipelines import tiny
from tests.servers.child import clean_environment

_TARGETS = {"bundle": 0.15, "package": 0.04}
_WORKER = """
import sys, time, json, torch, diffusers
diffusers.StableDiffusionPipeline
import hotshelf
from tests.pipelines.conftest import draw
began = time.monotonic()
pipe = hotshelf.load_pipeline(sys.argv[1], compile=sys.argv[2] or False)
image = draw(pipe)
took = time.monotonic() - began
print(json.dumps({"s": took, "image": image.hex(), "at": time.time()}), flush=True)
from hotshelf.pipelines.background import background
background.finish(300)
print(json.dumps(hotshelf.explain(pipe)["compile"]))
"""


def run(daemon: Daemon, source: str, mode: str, folder: pathlib.Path) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=folder) as inductor:
        env = {**clean_environment(), **daemon.environment, "TORCHINDUCTOR_CACHE_DIR": inductor}
        began = time.time()
        done = subprocess.run(
            [sys.executable, "-c", _WORKER, source, mode], env=env, capture_output=True, text=True, check=False
        )
    if done.returncode:
        raise SystemExit(done.stderr)
    drawn, how = (json.loads(line) for line in done.stdout.splitlines()[-2:])
    return {"s": drawn["s"], "whole": drawn["at"] - began, "image": bytes.fromhex(drawn["image"]), **how}


def apart(one: bytes, other: bytes) -> float:
    import numpy

    first, second = (numpy.frombuffer(image, dtype=numpy.float32) for image in (one, other))
    return float(numpy.abs(first - second).max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--mode", choices=("full", "regional"), default="full")
    given = parser.parse_args()
    taken: list[dict[str, dict[str, Any]]] = []
    with tempfile.TemporaryDirectory(prefix="hsb-") as name:
        folder = pathlib.Path(name)
        source = f"file://{tiny.save_to('sd', folder / 'sd')}"
        (folder / "recipe.yaml").write_text(
            json.dumps({"source": source, "compile": {"mode": "aot", "shapes": [{"height": 16, "width": 16}]}})
        )
        with Daemon(folder / "ahead", roots=[name], revalidate_s=3600) as ahead:
            began = time.monotonic()
            subprocess.run(
                [sys.executable, "-m", "hotshelf", "build", str(folder / "recipe.yaml")],
                env={**clean_environment(), **ahead.environment}, check=True, capture_output=True,
            )  # fmt: skip
            print(f"built ahead in {time.monotonic() - began:.1f} s")
            for number in range(given.rounds):
                with Daemon(folder / f"shelf-{number}", roots=[name], revalidate_s=3600) as daemon:
                    one = {
                        "plain": run(daemon, source, "", folder),
                        "cold": run(daemon, source, given.mode, folder),
                        "bundle": run(daemon, source, given.mode, folder),
                        "package": run(ahead, source, "aot", folder),
                    }
                taken.append(one)
                for way, found in one.items():
                    counted = f"{found['served_from']}, {found['hits']} hits, {found['misses']} misses"
                    far = apart(found["image"], one["plain"]["image"])
                    print(f"  {way}: {found['s']:.2f} s, {found['whole']:.2f} of the process; {counted}; {far:.1e} from plain")
    for way, target in _TARGETS.items():
        for what in ("s", "whole"):
            ratio = statistics.median(one[way][what] / one["cold"][what] for one in taken)
            cold, warm = (statistics.median(one[name][what] for one in taken) for name in ("cold", way))
            print(f"{way} {what}: cold {cold:.2f}, {way} {warm:.2f}; ratio {ratio:.3f}; target {target}")


if __name__ == "__main__":
    main()
