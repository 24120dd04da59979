"""64 clients, 200 models, room for a fifth of them, and a daemon that is killed every 20 s: nobody notices."""

from __future__ import annotations

import json
import os
import pathlib
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pytest

from tests import objects
from tests.daemon_process import Daemon
from tests.faults.invariants import visible_wrongs, wrongs_after_restart
from tests.faults.scripted_origin import ScriptedOrigin
from tests.faults.soaking import SEED, in_rounds
from tests.faults.test_origin_cases import settings
from tests.servers.child import clean_environment

MakeDaemon = Callable[..., Daemon]
ROOT = pathlib.Path(__file__).parents[2]
PROCESSES, CLIENTS, MODELS = 4, 16, 200
KILL_EVERY_S = 20.0
MIB = 1 << 20
#: What a daemon, or a process of clients, may grow by between its first seconds and its last.
GROWTH_BYTES, GROWTH_DESCRIPTORS = 48 * MIB, 160


def models(seed: str) -> dict[str, objects.Tree]:
    """Every fourth shares its VAE with its neighbours."""
    chance = random.Random(f"{seed} models")
    block = chance.randbytes(MIB)

    def piece() -> bytes:
        start, size = chance.randrange(MIB // 2), chance.randrange(2_000, 120_000)
        head = json.dumps({"w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
        return len(head).to_bytes(8, "little") + head + block[start : start + size]

    shared = [piece() for _ in range(MODELS // 4)]
    return {
        f"m{number}": {"unet/a.safetensors": piece(), "vae/a.safetensors": shared[number // 4], "model_index.json": b"{}"}
        for number in range(MODELS)
    }


def churn(make_daemon: MakeDaemon, folder: pathlib.Path, seconds: float, seed: str) -> int:
    trees = models(seed)
    size = sum(len(data) for tree in trees.values() for data in tree.values())
    chance, wrongs = random.Random(seed), list[str]()
    with ScriptedOrigin() as origin:
        origin.objects |= {f"{name}/{path}": data for name, tree in trees.items() for path, data in tree.items()}
        daemon = make_daemon(origins={"scripted": settings(origin.endpoint_url)}, budget=size // 5, revalidate_s=5)
        processes = [start(daemon, folder / f"plan-{n}", trees, seconds, f"{seed} {n}") for n in range(PROCESSES)]
        ends = time.monotonic() + seconds
        while (left := ends - time.monotonic()) > 0:
            # The first seconds open what is opened once; then nothing may grow.
            threading.Event().wait(min(5, left))
            early = measured(daemon)
            threading.Event().wait(max(0, min(KILL_EVERY_S - 5 + chance.random(), ends - time.monotonic())))
            wrongs += grown("the daemon", early, measured(daemon))
            daemon.kill9()
            wrongs += [f"after a kill: {wrong}" for wrong in visible_wrongs(daemon.store)]
            daemon.start()
        reports = [report(process) for process in processes]
        daemon.kill9()
    for told in reports:
        wrongs += told["wrongs"] + grown("a process of clients", told["early"], told["late"])
    wrongs += wrongs_after_restart(daemon.store, [])
    if '"defect"' in daemon.log_text:
        wrongs.append("the log tells of a defect")
    assert wrongs == [], f"TEST_SEED={seed}"
    served = sum(told["served"] for told in reports)
    assert served > PROCESSES * CLIENTS * seconds / 20
    return served


def start(
    daemon: Daemon, plan: pathlib.Path, trees: dict[str, objects.Tree], seconds: float, seed: str
) -> subprocess.Popen[str]:
    digests = {
        f"s3://weights/{name}": {path: objects.Digest.of(data).hex for path, data in tree.items()}
        for name, tree in trees.items()
    }
    plan.write_text(
        json.dumps({"socket": str(daemon.socket), "store": str(daemon.store), "seed": seed, "clients": CLIENTS,
                    "seconds": seconds, "models": digests})
    )  # fmt: skip
    argv = [sys.executable, "-m", "tests.faults.churning", str(plan)]
    return subprocess.Popen(argv, cwd=ROOT, env=clean_environment(), stdout=subprocess.PIPE, text=True)


def report(process: subprocess.Popen[str]) -> dict[str, object]:
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    found: dict[str, object] = json.loads(said)
    return found


def measured(daemon: Daemon) -> dict[str, int]:
    proc = pathlib.Path(f"/proc/{daemon.pid}")
    pages = int((proc / "statm").read_text().split()[1])
    return {"descriptors": len(os.listdir(proc / "fd")), "resident": pages * os.sysconf("SC_PAGE_SIZE")}


def grown(who: str, early: dict[str, int], late: dict[str, int]) -> list[str]:
    flat = (
        late["resident"] - early["resident"] <= GROWTH_BYTES
        and late["descriptors"] - early["descriptors"] <= GROWTH_DESCRIPTORS
    )
    return [] if flat else [f"{who} grew from {early} to {late}"]


@pytest.mark.timeout(400)
def test_sixty_four_clients_on_a_shelf_too_small_never_see_a_wrong_byte(
    make_daemon: MakeDaemon, tmp_path: pathlib.Path
) -> None:
    churn(make_daemon, tmp_path, 60, SEED)


@pytest.mark.soak
@pytest.mark.timeout(7_200)
def test_ten_minutes_of_that(make_daemon: MakeDaemon, tmp_path: pathlib.Path) -> None:
    in_rounds(
        "served by a shelf too small, killed every 20 s", 1, 1, lambda _count, seed: churn(make_daemon, tmp_path, 600, seed)
    )
