"""Origins that are slower than this machine, and many who want the same.

    python -m tests.bench.limited [--rounds N]

1. 60 MB/s a connection, 30 ms to the first byte, 1 GiB: beside what that makes at best, and beside fixed connections.
2. 300 MB/s over all connections, 2 GiB: how long after the last byte the digest is known, and the file ready.
3. 32 processes that want one cold snapshot: bytes at the origin, and the time between the first and the last answer.
"""

from __future__ import annotations

import argparse
import json
import math
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

from tests.bench import ours, workloads
from tests.daemon_process import Daemon
from tests.servers.nginx import Nginx
from tests.servers.paced import Paced
from tests.servers.recorder import Recorder

FIRST_BYTE_S, RATE, SEGMENT = 0.03, 60e6, 16 << 20
_WORKER = "import sys, time, hotshelf; sys.stdin.readline(); lease = hotshelf.acquire(sys.argv[1]); print(time.time())"


def acquire(daemon: Daemon, source: str) -> float:
    began = time.monotonic()
    answer = daemon.acquire(source, timeout_s=600)
    if answer.status != 200:
        raise SystemExit(f"{answer.body}\n{daemon.log_text[-4_000:]}")
    return time.monotonic() - began


def fetched(daemon: Daemon) -> dict[str, Any]:
    lines = [json.loads(line) for line in daemon.log_text.splitlines()]
    found: dict[str, Any] = max((one for one in lines if one["event"] == "fetched"), key=lambda one: one["bytes"])
    return found


def slow_connections(folder: pathlib.Path, rounds: int) -> None:
    with Paced(folder / "slow", first_byte_s=FIRST_BYTE_S, connection_rate=RATE) as origin:
        published = workloads.publish("limited", origin.root)
        took: dict[int, list[float]] = {}
        for number in range(rounds):
            for most in (2, 4, 8, 12, 16, 0)[:: 1 if number % 2 else -1]:  # 0: as we find it
                fetch = {"connections": most} if most else {}
                with ours.fresh(folder / "d", origin.endpoint_url, fetch=fetch) as daemon:
                    acquire(daemon, published.source)
                    took.setdefault(most, []).append(fetched(daemon)["seconds"])
    size = max(published.sizes.values())
    for most in sorted(took):
        seconds, connections = statistics.median(took[most]), most or 16
        best = FIRST_BYTE_S * math.ceil(math.ceil(size / SEGMENT) / connections) + size / (connections * RATE)
        name = f"{most:2} connections" if most else "as we find it "
        rate = size / seconds / 1e6
        print(f"  {name}: {seconds:.2f} s, {rate:.0f} MB/s; best for {connections} is {best:.2f} s: {best / seconds:.2f}")
    fixed = min(statistics.median(times) for most, times in took.items() if most)
    print(f"  best fixed / ours: {fixed / statistics.median(took[0]):.2f} (target 0.9)")


def verdicts(folder: pathlib.Path, rounds: int) -> None:
    with Paced(folder / "steady", total_rate=300e6) as origin:
        published = workloads.publish("one", origin.root)
        found = []
        for _ in range(rounds):
            with ours.fresh(folder / "d", origin.endpoint_url) as daemon:
                whole = acquire(daemon, published.source)
                found.append((fetched(daemon)["verdict_ms"], whole, fetched(daemon)["seconds"]))
    verdict, whole, arrived = (statistics.median(column) for column in zip(*found, strict=True))
    print(f"  digest known {verdict:.0f} ms after the last byte ({sorted(round(one[0]) for one in found)}; target 50);"
          f" last byte after {arrived:.2f} s, ready after {whole:.2f} s")  # fmt: skip


def herd(folder: pathlib.Path, rounds: int, count: int = 32) -> None:
    spreads, shares = [], []
    with Nginx(folder / "nginx") as origin, Recorder(origin.endpoint_url) as recorder:
        published = workloads.publish("herd", origin.root)
        for _ in range(rounds):
            before = recorder.bytes_for("herd/blobs")
            with ours.fresh(folder / "d", recorder.endpoint_url) as daemon:
                argv = [sys.executable, "-c", _WORKER, published.source]
                workers = [
                    subprocess.Popen(argv, env=daemon.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
                    for _ in range(count)
                ]
                time.sleep(3)  # all have imported what they need
                for worker in workers:
                    assert worker.stdin is not None
                    worker.stdin.write("\n")
                    worker.stdin.flush()
                ready = [float(worker.communicate(timeout=300)[0]) for worker in workers]
            spreads.append(max(ready) - min(ready))
            shares.append((recorder.bytes_for("herd/blobs") - before) / published.bytes)
    print(f"  bytes at the origin / size: {statistics.median(shares):.2f}; first to last answer: median"
          f" {1e3 * statistics.median(spreads):.0f} ms, {[round(1e3 * one) for one in spreads]} (target 50)")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hsb-") as made:
        folder = pathlib.Path(made)
        print(f"an origin of {RATE / 1e6:g} MB/s a connection, {FIRST_BYTE_S * 1e3:g} ms to the first byte:")
        slow_connections(folder, given.rounds)
        print("an origin of 300 MB/s:")
        verdicts(folder, given.rounds)
        print("32 processes, one cold snapshot:")
        herd(folder, given.rounds)


if __name__ == "__main__":
    main()
