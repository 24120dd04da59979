"""Origins that are slower than this machine, and many who want the same.

    python -m tests.bench.limited [--rounds N]

1. 60 MB/s a connection, 30 ms to the first byte, 1 GiB: beside what that makes at best, and beside fixed connections.
2. 300 MB/s over all connections, 2 GiB: how long after the last byte the digest is known, and the file ready.
3. 32 processes that want one cold snapshot: bytes at the origin, and the time between the first and the last answer.
4. Killed with -9 when half of a 1 GiB file has come: what is fetched again.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import math
import pathlib
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any

from tests.bench import ours, results, workloads
from tests.daemon.looking import rows
from tests.daemon_process import Daemon
from tests.servers.nginx import Nginx
from tests.servers.paced import Paced
from tests.servers.recorder import Recorder
from tests.waiting import wait_until

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


def alone(endpoint_url: str, key: str) -> float:
    """Bytes a second that one connection brings after its first byte, to a reader that does nothing with them."""
    with contextlib.closing(http.client.HTTPConnection(endpoint_url.partition("://")[2])) as connection:
        rates = []
        for start in range(0, 3 * SEGMENT, SEGMENT):
            connection.request("GET", f"/{workloads.BUCKET}/{key}", headers={"Range": f"bytes={start}-{start + SEGMENT - 1}"})
            response = connection.getresponse()
            began = time.monotonic()
            while response.read1(1 << 20):
                pass
            response.close()
            rates.append(SEGMENT / (time.monotonic() - began))
    print(f"  one connection by itself: {statistics.median(rates) / 1e6:.1f} MB/s")
    return statistics.median(rates)


def slow_connections(folder: pathlib.Path, rounds: int) -> dict[str, Any]:
    with Paced(folder / "slow", first_byte_s=FIRST_BYTE_S, connection_rate=RATE) as origin:
        published = workloads.publish("limited", origin.root)
        size = max(published.sizes.values())
        rate = max(RATE, alone(origin.endpoint_url, next(key for key in published.sizes if published.sizes[key] == size)))
        took: dict[int, list[float]] = {}
        for number in range(rounds):
            for most in (2, 4, 8, 12, 16, 0)[:: 1 if number % 2 else -1]:  # 0: as we find it
                fetch = {"connections": most} if most else {}
                with ours.fresh(folder / "d", origin.endpoint_url, fetch=fetch) as daemon:
                    acquire(daemon, published.source)
                    took.setdefault(most, []).append(fetched(daemon)["seconds"])
    for most in sorted(took):
        seconds, connections = statistics.median(took[most]), most or 16
        best = FIRST_BYTE_S * math.ceil(math.ceil(size / SEGMENT) / connections) + size / (connections * rate)
        name = f"{most:2} connections" if most else "as we find it "
        came = f"{seconds:.2f} s, {size / seconds / 1e6:.0f} MB/s"
        print(f"  {name}: {came}; best for {connections} is {best:.2f} s: {best / seconds:.2f} (target 0.95)")
    fixed = min(statistics.median(times) for most, times in took.items() if most)
    print(f"  best fixed / ours: {fixed / statistics.median(took[0]):.2f} (target 0.9)")
    return {"seconds by connections (0: adaptive)": took, "best fixed / adaptive": fixed / statistics.median(took[0])}


def verdicts(folder: pathlib.Path, rounds: int) -> dict[str, Any]:
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
    return {"verdict ms": [one[0] for one in found], "ready s": whole, "last byte s": arrived}


def herd(folder: pathlib.Path, rounds: int, count: int = 32) -> dict[str, Any]:
    spreads, answered, shares = [], [], []
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
                at = [row["at"] for row in rows(daemon, "SELECT at FROM requests")]
            assert len(at) == count
            answered.append(max(at) - min(at))
            spreads.append(max(ready) - min(ready))
            shares.append((recorder.bytes_for("herd/blobs") - before) / published.bytes)
    print(f"  bytes at the origin / size: {statistics.median(shares):.2f}; the daemon's first to last answer: median"
          f" {1e3 * statistics.median(answered):.0f} ms, {[round(1e3 * one) for one in answered]} (target 50); as its workers"
          f" see it {1e3 * statistics.median(spreads):.0f} ms, {[round(1e3 * one) for one in spreads]}")  # fmt: skip
    return {
        "bytes at the origin / size": shares,
        "first to last answer s": answered,
        "first to last worker that knows s": spreads,
    }


def resumed(folder: pathlib.Path, rounds: int) -> dict[str, Any]:
    again = []
    with Nginx(folder / "nginx") as origin, Recorder(origin.endpoint_url) as recorder:
        published = workloads.publish("limited", origin.root)
        for _ in range(rounds):
            before = recorder.bytes_for("limited/blobs")
            with ours.fresh(folder / "d", recorder.endpoint_url) as daemon:
                recorder.limit_rate(200e6)
                threading.Thread(target=lambda: broken_off(daemon, published.source)).start()
                wait_until(lambda: recorder.bytes_for("limited/blobs") - before >= published.bytes / 2, every_s=0.002)  # noqa: B023
                daemon.kill9()
                recorder.limit_rate(None)
                daemon.start()
                acquire(daemon, published.source)
            again.append(recorder.bytes_for("limited/blobs") - before - published.bytes)
    most = max(again) / SEGMENT
    print(f"  fetched twice: {[f'{one / SEGMENT:.1f}' for one in again]} segments, {most:.1f} at most (16 may be in flight)")
    return {"segments fetched twice": [one / SEGMENT for one in again]}


def broken_off(daemon: Daemon, source: str) -> None:
    with contextlib.suppress(OSError, http.client.HTTPException):  # the daemon is killed under it: that is the point
        daemon.acquire(source)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hsb-") as made:
        folder = pathlib.Path(made)
        print(f"an origin of {RATE / 1e6:g} MB/s a connection, {FIRST_BYTE_S * 1e3:g} ms to the first byte:")
        measured = {"slow connections": slow_connections(folder / "1", given.rounds)}
        print("an origin of 300 MB/s:")
        measured["verdict"] = verdicts(folder / "2", given.rounds)
        print("32 processes, one cold snapshot:")
        measured["herd"] = herd(folder / "3", given.rounds)
        print("killed half-way:")
        measured["resume"] = resumed(folder / "4", given.rounds)
    results.save("limited", measured)


if __name__ == "__main__":
    main()
