"""Long runs, in rounds that are written down: one that was interrupted, or found something, goes on after its last good round.

`make soak` names a run and says so; `make soak SEED=NAME` resumes it. Round N of a suite draws everything from the seed
`NAME-N`, which is what a failure names; a good round is a line of `.soak/NAME.jsonl`, so the failed one is what is done next.
`python -m tests.faults.soaking NAME` prints the figures.
"""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

ROOT = pathlib.Path(__file__).parents[2]
#: What random tests draw from in the short run: the same each time, unless TEST_SEED says otherwise.
SEED = os.environ.get("TEST_SEED", "in CI")
#: How many times as much as they are asked for the suites of a soak do; 0.01 is to try the soak itself.
SHARE = float(os.environ.get("SOAK_SHARE", "1"))


def ledger(name: str) -> pathlib.Path:
    return ROOT / ".soak" / f"{name}.jsonl"


def lines(name: str) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in ledger(name).read_text().splitlines()]
    except FileNotFoundError:
        return []


def in_rounds(suite: str, total: int, each: int, work: Callable[[int, str], int | None]) -> None:
    """`work(count, seed)` in rounds of `each` until `total` are done, leaving out those of this run that held before.

    It raises when something is wrong, and may return how many it really did.
    """
    total = max(1, round(total * SHARE))
    held = {line["round"] for line in lines(SEED) if line["suite"] == suite}
    for number in range(-(-total // each)):
        if number in held:
            continue
        count, seed, began = min(each, total - number * each), f"{SEED}-{number}", time.monotonic()
        did = work(count, seed)
        line = {"suite": suite, "round": number, "seed": seed, "did": count if did is None else did,
                "seconds": round(time.monotonic() - began, 1), "commit": commit()}  # fmt: skip
        ledger(SEED).parent.mkdir(exist_ok=True)
        with ledger(SEED).open("a") as file:
            file.write(json.dumps(line) + "\n")


def commit() -> str:
    said = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, check=False, capture_output=True, text=True)
    return said.stdout.strip() or "unknown"


def main() -> None:
    suites: dict[str, list[dict[str, Any]]] = {}
    for line in lines(sys.argv[1]):
        suites.setdefault(line["suite"], []).append(line)
    for suite, rounds in sorted(suites.items()):
        did, minutes = sum(line["did"] for line in rounds), sum(line["seconds"] for line in rounds) / 60
        commits = ", ".join(sorted({line["commit"] for line in rounds}))
        print(f"{suite}: {did:,} in {len(rounds)} rounds, {minutes:.0f} min, at {commits}")


if __name__ == "__main__":
    main()
