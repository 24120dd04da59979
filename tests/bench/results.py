"""Where measurements are kept: `results/NAME.json`, each with the machine it was made on."""

from __future__ import annotations

import json
import os
import pathlib
import platform
import re
import statistics
from collections.abc import Sequence
from typing import Any

FOLDER = pathlib.Path(__file__).parent / "results"


def machine() -> str:
    """The processor, how many of it, and the kernel."""
    info = pathlib.Path("/proc/cpuinfo").read_text()
    found = re.search(r"^model name\s*:\s*(.+)$", info, re.MULTILINE)
    name = found[1] if found else platform.machine()
    return f"{os.cpu_count()} vCPUs of {name}, Linux {platform.release().split('-')[0]}"


def save(name: str, measured: dict[str, Any]) -> None:
    """What was measured before on the same machine, and not now, stays."""
    path = FOLDER / f"{name}.json"
    FOLDER.mkdir(exist_ok=True)
    before = json.loads(path.read_text()) if path.exists() else {}
    kept = before if before.get("machine") == machine() else {}
    path.write_text(json.dumps({**kept, "machine": machine(), **measured}, indent=1) + "\n")


def spread(values: Sequence[float]) -> list[float]:
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [*values] * 3
    return [round(value, 3) for value in (middle, low, high)]
