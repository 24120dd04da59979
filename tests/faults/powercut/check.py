"""Opens the store on $ROOT as a daemon would and holds it against $ACK. Exits 0 when every invariant holds."""

from __future__ import annotations

import json
import os
import pathlib
import sys

from tests.faults.invariants import Promise, wrongs_after_restart


def promises(ack: pathlib.Path) -> list[Promise]:
    """The acknowledged snapshots; a last line that was cut short was not acknowledged."""
    lines = ack.read_text().split("\n")[:-1]
    return [Promise(**json.loads(line)) for line in lines]


def main() -> int:
    root, ack = pathlib.Path(os.environ["ROOT"]), pathlib.Path(os.environ["ACK"])
    kept = promises(ack)
    wrongs = list(wrongs_after_restart(root / "store", kept))
    print(*wrongs, f"{len(kept)} acknowledged, {len(wrongs)} wrong", sep="\n")
    return 1 if wrongs else 0


if __name__ == "__main__":
    sys.exit(main())
