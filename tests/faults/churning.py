"""A process of many workers on a shelf that is too small for what they ask for: `… churning PLAN`. Prints a JSON report.

PLAN is a JSON file: socket, store, seed, clients, seconds, and for each source the digest of every path. Each client has a
thread, a `hotshelf.Client` and a keeper of its own; it acquires, reads every byte, waits a little, reads again, releases. What
a retry within the deadline does not cure is wrong.
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import random
import sys
import threading
import time
from typing import Any

from hotshelf import Client
from hotshelf.errors import HotshelfError

DEADLINE_S = 60.0
READ_BYTES = 1 << 20


class Churn:
    """What its clients saw, all together."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self.plan, self.models = plan, plan["models"]
        self.ends = time.monotonic() + plan["seconds"]
        self.served, self.cured, self.wrongs = 0, 0, []
        self._turn = threading.Lock()

    def work(self, number: int) -> None:
        chance = random.Random(f"{self.plan['seed']} client {number}")
        client = Client(self.plan["socket"], self.plan["store"])
        while time.monotonic() < self.ends:
            # Some models are asked for far more often than others, as everywhere.
            source = [*self.models][min(int(chance.paretovariate(0.7)), len(self.models)) - 1]
            try:
                self.use(client, source, chance)
            except Exception as error:
                self.wrongs.append(f"{source}: {type(error).__name__}: {error}")

    def use(self, client: Client, source: str, chance: random.Random) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while True:
            try:
                with client.acquire(source, timeout=max(deadline - time.monotonic(), 1)) as lease:
                    for pause_s in (chance.random() * 0.1, 0):
                        self.hold_against(source, lease.path)
                        time.sleep(pause_s)  # a lease holds meanwhile
                break
            except HotshelfError as error:
                if not error.retryable or time.monotonic() > deadline:
                    raise
            time.sleep(0.05 + chance.random() * 0.2)  # what the hint says: when others have let go
            with self._turn:
                self.cured += 1
        with self._turn:
            self.served += 1

    def hold_against(self, source: str, folder: pathlib.Path) -> None:
        found = {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}
        if found != self.models[source].keys():
            self.wrongs.append(f"{source} holds {sorted(found)}")
        for path, digest in self.models[source].items():
            try:
                with (folder / path).open("rb") as file:
                    if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                        self.wrongs.append(f"{source} has other bytes in {path}")
            except OSError as error:
                self.wrongs.append(f"{source} lost {path} while it was leased: {error}")


def measured() -> dict[str, int]:
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return {"descriptors": len(os.listdir("/proc/self/fd")), "resident": pages * os.sysconf("SC_PAGE_SIZE")}


def main() -> None:
    churn = Churn(json.loads(pathlib.Path(sys.argv[1]).read_text()))
    threads = [threading.Thread(target=churn.work, args=(number,)) for number in range(churn.plan["clients"])]
    for thread in threads:
        thread.start()
    threading.Event().wait(churn.plan["seconds"] / 4)  # by then everything there is has been opened once
    early = measured()
    threading.Event().wait(max(0, churn.ends - time.monotonic() - 1))
    late = measured()
    for thread in threads:
        thread.join()
    print(json.dumps({"served": churn.served, "cured": churn.cured, "wrongs": churn.wrongs[:20], "early": early, "late": late}))


if __name__ == "__main__":
    main()
