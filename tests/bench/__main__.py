"""`make bench`: every benchmark, one after the other, or those named: `make bench ARGS=hit`."""

from __future__ import annotations

import argparse
import runpy
import sys

BENCHMARKS = ("hit", "load", "fetch", "limited", "ready", "build", "prewarm", "lastmile", "compile")


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}; all of them by default")
    given = parser.parse_args()
    if unknown := set(given.names) - set(BENCHMARKS):
        parser.error(f"there is no benchmark {', '.join(sorted(unknown))}")
    for name in given.names or BENCHMARKS:
        print(f"-- {name}", flush=True)
        sys.argv = [f"tests.bench.{name}"]
        runpy.run_module(f"tests.bench.{name}", run_name="__main__")


if __name__ == "__main__":
    main()
