"""How much a warm hit costs beside a bare aiohttp echo on a Unix socket, in the same run, with the origin switched off.

    python -m tests.bench.hit [--rounds N] [--calls N]

Interleaved rounds; prints the median of each and the median of the ratios, round by round.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator

from tests import objects
from tests.daemon_process import Daemon, UnixConnection
from tests.servers.child import Child, clean_environment
from tests.servers.moto import Moto

_ECHO = """
import sys
from aiohttp import web

async def echo(request):
    await request.json()
    return web.json_response({"ok": True})

app = web.Application()
app.router.add_post("/echo", echo)
web.run_app(app, path=sys.argv[1], print=None, access_log=None)
"""


@contextlib.contextmanager
def echo_server(folder: pathlib.Path) -> Iterator[str]:
    path = folder / "echo"
    argv = [sys.executable, "-c", _ECHO, str(path)]
    child = Child(argv, log=folder / "echo.log", env=clean_environment(), cwd=folder)
    try:
        child.wait_ready(path.exists)
        yield str(path)
    finally:
        child.kill()


def median_s(socket_path: str, target: str, body: bytes, calls: int) -> float:
    connection: http.client.HTTPConnection = UnixConnection(socket_path)
    times = []
    with contextlib.closing(connection):
        for _ in range(calls):
            began = time.perf_counter()
            connection.request("POST", target, body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            answer.read()
            times.append(time.perf_counter() - began)
            if answer.status != 200:
                raise SystemExit(f"{target} answered {answer.status}")
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--calls", type=int, default=300)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hsb-") as name, Moto(pathlib.Path(name)) as origin:
        folder = pathlib.Path(name)
        with origin.client() as client:
            client.create_bucket(Bucket="weights")
        objects.put(origin, "weights", "sd", objects.model())
        with Daemon(folder / "d", origins={"o": origin.settings("weights")}, lease_ttl_s=5) as daemon:
            if daemon.acquire("s3://weights/sd").status != 200:
                raise SystemExit(daemon.log_text)
            origin.stop()
            body = json.dumps({"source": "s3://weights/sd"}).encode()
            with echo_server(folder) as echo:
                median_s(echo, "/echo", body, 200), median_s(str(daemon.socket), "/v1/leases", body, 200)  # warm both
                rounds = [
                    (median_s(echo, "/echo", body, given.calls), median_s(str(daemon.socket), "/v1/leases", body, given.calls))
                    for _ in range(given.rounds)
                ]
    echoes, hits = zip(*rounds, strict=True)
    ratios = sorted(hit / bare for bare, hit in rounds)
    print(f"bare echo p50 {statistics.median(echoes) * 1e6:.0f} µs, warm hit p50 {statistics.median(hits) * 1e6:.0f} µs")
    print(f"ratio: median {statistics.median(ratios):.2f}, from {ratios[0]:.2f} to {ratios[-1]:.2f} over {len(ratios)} rounds")


if __name__ == "__main__":
    main()
