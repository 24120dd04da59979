"""The daemon as a contestant: from a request on its socket to the answer that all files are verified, durable and ready."""

from __future__ import annotations

import os
import pathlib
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.bench.peers import SETTLE_S, Took
from tests.daemon_process import Daemon


@contextmanager
def fresh(
    folder: pathlib.Path, endpoint_url: str, *, key_id: str = "", secret: str = "", ca_bundle: str = "", **settings: Any
) -> Iterator[Daemon]:
    """A daemon on an empty shelf, with nothing but the origin's address configured."""
    shutil.rmtree(folder, ignore_errors=True)
    signing = {"access_key_id": key_id, "secret_access_key": secret} if secret else {"unsigned": True}
    trusted = {"ca_bundle": ca_bundle} if ca_bundle else {}
    with Daemon(folder, origins={"o": {"endpoint_url": endpoint_url, **signing, **trusted}}, **settings) as daemon:
        yield daemon


def measure(folder: pathlib.Path, endpoint_url: str, source: str, **settings: Any) -> Took:
    """What one cold acquire takes. A daemon lives long: what it does once at its start is not counted."""
    with fresh(folder, endpoint_url, **settings) as daemon:
        time.sleep(SETTLE_S)
        cpu, began = cpu_s(daemon.pid), time.monotonic()
        answer = daemon.acquire(source, timeout_s=900)
        took = Took(time.monotonic() - began, cpu_s(daemon.pid) - cpu, peak=peak_bytes(daemon.pid))
        if answer.status != 200:
            raise SystemExit(f"{source}: {answer.body}\n{daemon.log_text[-4_000:]}")
    return took


def cpu_s(pid: int) -> float:
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def peak_bytes(pid: int) -> int:
    """The most memory that the process has had resident at once."""
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))
