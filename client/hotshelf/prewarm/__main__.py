"""The process that `hotshelf worker --prewarm` becomes, and every worker forked from it: ``python -m hotshelf.prewarm JSON``.

Nothing here may keep a child from ending as any Python does: the worker returns through these frames to the interpreter.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

from hotshelf.prewarm import files, signals, worker
from hotshelf.prewarm.address import Listener
from hotshelf.prewarm.footing import Footing, base_path
from hotshelf.prewarm.preload import preload, settle
from hotshelf.prewarm.program import Program
from hotshelf.prewarm.request import Request
from hotshelf.prewarm.stub import umask
from hotshelf.prewarm.zygote import Zygote
from hotshelf_shared.errors import HotshelfError

#: Has torch count GPUs without CUDA, which no child could use any more.
_CUDA_CHECK = "PYTORCH_NVML_BASED_CUDA_CHECK"


def main() -> None:
    """Returns in workers only."""
    given: dict[str, Any] = json.loads(sys.argv[1])
    program = Program.parse(given["program"])
    here = Request(
        program=program or Program("", (), is_module=False),
        footing=Footing.here(),
        executable=sys.executable,
        folder=os.getcwd(),
        umask=umask(),
        files=files.inherited(),
        ignored=signals.ignored(),
        blocked=signals.blocked(),
    )
    if program is None:
        files.close(here.files[len(files.STREAMS) :])  # no worker's: the stubs bring their own
    began = time.monotonic()
    os.environ[_CUDA_CHECK] = "1"
    sys.path[:] = base_path()
    try:
        listener = Listener.open(given["address"])
        try:
            preload(given["preload"])
            settle()
        except BaseException:
            listener.close()
            raise
    except HotshelfError as error:
        print(f"hotshelf: {error.message}\n  {error.hint}", file=sys.stderr)
        sys.exit(error.exit_code)
    listener.begin()
    left = {name: value for name, value in os.environ.items() if name not in {**here.footing.environment, _CUDA_CHECK: ""}}
    _say(given, time.monotonic() - began, alone=program is None)
    came = Zygote(listener, here, keep=program is not None, restarts=given["restarts"]).run()
    if isinstance(came, int):
        listener.close()
        signals.end_like(came)
    worker.run(worker.become(came, left))


def _say(given: dict[str, Any], seconds: float, *, alone: bool) -> None:
    """Once it is ready. On stdout for programs, unless that is a worker's."""
    if given["format"] == "human":
        print(f"hotshelf zygote: ready after {seconds:.1f} s at {given['address']}", file=sys.stderr, flush=True)
    elif alone:
        ready = {"socket": given["address"], "seconds": round(seconds, 3)}
        print(json.dumps(ready) if given["format"] == "json" else given["address"], flush=True)


if __name__ == "__main__":
    main()
