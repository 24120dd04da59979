"""All benchmarks, one after another, each in a process of its own: `python -m tests.bench [NAME…]`."""

from __future__ import annotations

import pathlib
import subprocess
import sys

HERE = pathlib.Path(__file__).parent


def main() -> int:
    names = sys.argv[1:] or sorted(path.stem for path in HERE.glob("*.py") if not path.stem.startswith("_"))
    for name in names:
        print(f"== {name}", flush=True)
        if status := subprocess.run([sys.executable, "-m", f"tests.bench.{name}"], check=False).returncode:
            return status
    return 0


if __name__ == "__main__":
    sys.exit(main())
