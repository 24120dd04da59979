"""From the start of a process to a pipeline that is ready, beside bare imports and plain `from_pretrained`.

    python -m tests.bench.ready [--rounds N]

Warm: the origin is stopped, the files are on the shelf and in the page cache; fresh processes, interleaved; the median of
the ratios, round by round. Cold: an empty shelf and an origin of limited rate; the total beside what downloading alone,
importing alone and loading take.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import hotshelf
from tests import objects
from tests.daemon_process import Daemon
from tests.pipelines import tiny
from tests.servers.child import clean_environment
from tests.servers.recorder import Recorder
from tests.servers.seaweedfs import SeaweedFS

_IMPORT = "import sys, torch, diffusers; diffusers.DiffusionPipeline; diffusers.StableDiffusionPipeline"
_PLAIN = f"{_IMPORT}; pipe = diffusers.DiffusionPipeline.from_pretrained(sys.argv[1]); print('{{}}', flush=True)"
_OURS = (
    "import sys, json, hotshelf; pipe = hotshelf.load_pipeline(sys.argv[1]);"
    "print(json.dumps(hotshelf.explain(pipe)['phases']), flush=True)"
)


@dataclass(frozen=True)
class Run:
    """One fresh process: seconds until its line, CPU-seconds it took in all, and what the line says."""

    ready_s: float
    cpu_s: float
    phases: dict[str, float]


def run(code: str, argument: str, env: Mapping[str, str]) -> Run:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.monotonic()
    with subprocess.Popen(
        [sys.executable, "-c", code, argument], env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as child:
        line = child.stdout.readline() if child.stdout else ""
        took = time.monotonic() - began
        child.communicate()
    if child.returncode or not line:
        raise SystemExit(f"the worker failed: {code}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return Run(took, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, json.loads(line))


def warm(daemon: Daemon, source: str, path: str, rounds: int) -> None:
    ways = {"plain": (_PLAIN, path), "ours": (_OURS, source)}
    for code, argument in ways.values():  # the page cache, and what is compiled to bytecode
        run(code, argument, daemon.environment)
    taken: list[dict[str, Run]] = []
    for number in range(rounds):
        names = list(ways) if number % 2 else list(ways)[::-1]
        taken.append({name: run(*ways[name], daemon.environment) for name in names})
    for what in ("ready_s", "cpu_s"):
        ratios = sorted(getattr(one["ours"], what) / getattr(one["plain"], what) for one in taken)
        plain, ours = (statistics.median(getattr(one[name], what) for one in taken) for name in ways)
        print(
            f"warm {what}: plain {plain:.2f}, ours {ours:.2f} (medians); ratio: median {statistics.median(ratios):.3f},"
            f" from {ratios[0]:.3f} to {ratios[-1]:.3f}; target 1.05"
        )
    phases = {name: statistics.median(one["ours"].phases[name] for one in taken) for name in taken[0]["ours"].phases}
    print("warm phases: " + ", ".join(f"{name} {seconds:.3f}" for name, seconds in phases.items()))


def cold(folder: pathlib.Path, recorder: Recorder, settings: dict[str, Any], source: str, size: int) -> None:
    """The bound twice: by what importing takes alone, and (on a busy machine) by what it took in that run."""
    imports_s = statistics.median(run(f"{_IMPORT}; print('{{}}')", "", clean_environment()).ready_s for _ in range(3))
    for share in (0.5, 1.0, 2.0):
        recorder.limit_rate(size / (imports_s * share))
        with Daemon(folder / f"alone-{share}", origins=settings) as daemon:
            began = time.monotonic()
            with hotshelf.Client(daemon.socket, daemon.store).acquire(source):
                download_s = time.monotonic() - began
        with Daemon(folder / f"cold-{share}", origins=settings) as daemon:
            one = run(_OURS, source, daemon.environment)
        took = one.phases
        load_s = took["load"] + took["lora"] + took["attention"]
        alone = (one.ready_s - load_s) / max(download_s, imports_s)
        there = (took["total"] - load_s) / max(took["acquire"], took["import"])
        print(
            f"cold: ready after {one.ready_s:.2f} s; download alone {download_s:.2f}, imports alone {imports_s:.2f},"
            f" load {load_s:.2f}; without load {alone:.3f} times the longer of the two alone,"
            f" {there:.3f} times the longer in that run ({took['acquire']:.2f} and {took['import']:.2f}); target 1.1"
        )
    recorder.limit_rate(None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hsb-") as name, SeaweedFS(pathlib.Path(name) / "weed") as origin:
        folder = pathlib.Path(name)
        tree = objects.read(tiny.save_to("sd-large", folder / "sd"))
        size = objects.size_of(tree)
        print(f"a StableDiffusionPipeline of {size / 1e6:.0f} MB")
        with origin.client() as client:
            client.create_bucket(Bucket="weights")
            objects.upload(client, "weights", "sd", tree)
        with Recorder(origin.endpoint_url) as recorder:
            settings = {"o": origin.settings("weights", endpoint_url=recorder.endpoint_url)}
            with Daemon(folder / "d", origins=settings) as daemon:
                run(_OURS, "s3://weights/sd", daemon.environment)
                held = max(hotshelf.Client(daemon.socket, daemon.store).snapshots(), key=lambda one: int(one["size"]))
                with recorder.down():
                    warm(daemon, "s3://weights/sd", str(daemon.store / held["path"]), given.rounds)
            cold(folder, recorder, settings, "s3://weights/sd", size)


if __name__ == "__main__":
    main()
