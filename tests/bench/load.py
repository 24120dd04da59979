"""What a warm hit takes while a download takes all that the machine has, beside the same hit on an idle daemon.

    python -m tests.bench.load [--rounds N]

Interleaved rounds: hits on the idle daemon, then hits for as long as a cold 2 GiB object is under way from nginx on the same
machine. Prints p50 and p99 of both, and the median of the ratios.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import pathlib
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any

from tests import objects
from tests.bench import ours, results, workloads
from tests.daemon_process import Daemon, UnixConnection
from tests.servers.nginx import Nginx

IDLE_CALLS = 500


def hits(daemon: Daemon, source: str, go_on: Callable[[int], bool]) -> list[float]:
    """Seconds of each, sorted; one every few milliseconds, as workers ask, not as fast as can be."""
    body, times = json.dumps({"source": source}).encode(), list[float]()
    connection: http.client.HTTPConnection = UnixConnection(daemon.socket)
    with contextlib.closing(connection):
        while go_on(len(times)):
            began = time.perf_counter()
            connection.request("POST", "/v1/leases", body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            answer.read()
            times.append(time.perf_counter() - began)
            if answer.status != 200:
                raise SystemExit(f"a hit was answered {answer.status}")
            time.sleep(0.002)
    return sorted(times)


def quantile(times: list[float], share: float) -> float:
    return times[min(len(times) - 1, int(share * len(times)))]


def one_round(folder: pathlib.Path, origin: Nginx, big: str) -> tuple[list[float], list[float], float]:
    """Times of hits when idle and under load, and how long the download took."""
    with ours.fresh(folder / "d", origin.endpoint_url) as daemon:
        if daemon.acquire("s3://weights/sd").status != 200:
            raise SystemExit(daemon.log_text)
        hits(daemon, "s3://weights/sd", lambda done: done < 100)
        idle = hits(daemon, "s3://weights/sd", lambda done: done < IDLE_CALLS)
        began, ended = time.monotonic(), list[float]()

        def fetch() -> None:
            if daemon.acquire(big, timeout_s=900).status != 200:
                raise SystemExit(daemon.log_text)
            ended.append(time.monotonic() - began)

        fetching = threading.Thread(target=fetch)
        fetching.start()
        loaded = hits(daemon, "s3://weights/sd", lambda _: fetching.is_alive())
        fetching.join()
    return idle, loaded, ended[0]


def _ms(seconds: list[float]) -> str:
    return f"{statistics.median(seconds) * 1e3:.2f} ms"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hsb-") as made, Nginx(pathlib.Path(made) / "nginx") as origin:
        folder = pathlib.Path(made)
        objects.write(origin.root / workloads.BUCKET / "sd", objects.published(objects.model()))
        big = workloads.publish("one", origin.root)
        rounds = [one_round(folder, origin, big.source) for _ in range(given.rounds)]
    idle_times, loaded_times, took = zip(*rounds, strict=True)
    measured: dict[str, Any] = {"rounds": given.rounds, "GB/s": big.bytes / 1e9 / statistics.median(took)}
    for share in (0.5, 0.99):
        idle, loaded = ([quantile(times, share) for times in column] for column in (idle_times, loaded_times))
        ratios = sorted(under / alone for alone, under in zip(idle, loaded, strict=True))
        print(f"p{share * 100:g}: idle {_ms(idle)}, under a download {_ms(loaded)};"
              f" ratio: median {statistics.median(ratios):.2f}, from {ratios[0]:.2f} to {ratios[-1]:.2f}")  # fmt: skip
        measured[f"p{share * 100:g}"] = {"idle s": idle, "under a download s": loaded, "ratio": results.spread(ratios)}
    print(f"the download: {measured['GB/s']:.2f} GB/s")
    results.save("load", measured)


if __name__ == "__main__":
    main()
