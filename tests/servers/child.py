"""A server as a child process: started, watched until it answers, killed hard, its log kept for the failure message."""

from __future__ import annotations

import contextlib
import os
import pathlib
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence


class StartFailed(AssertionError):
    """A server that tests stand on did not come up. Never a skip."""


def clean_environment(**more: str) -> dict[str, str]:
    """This process's environment without anything that could configure hotshelf, an S3 client or a hub by accident."""
    loud = (
        "AWS_",
        "B2_",
        "CLOUDSDK_",
        "GCE_METADATA_",
        "GOOGLE_",
        "STORAGE_EMULATOR_HOST",
        "HF_",
        "HUGGINGFACE_",
        "TRANSFORMERS_",
        "DIFFUSERS_",
        "HOTSHELF_",
        "B10FS_",
        "BASETEN_",
        "LOCAL_WORK_DIR",
        "MAX_CACHE_SIZE_MB",
        "MAX_CONCURRENT_SAVES",
        "TORCHINDUCTOR_",
        "TRITON_",
        "VLLM_",
        "S3_BUCKET",
        "PIPELINE_STORE",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "ALL_PROXY",
    )
    kept = {name: value for name, value in os.environ.items() if not name.upper().startswith(loud)}
    return {**kept, "AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull, "NO_GCE_CHECK": "true", "CLOUDSDK_CONFIG": os.devnull,
            "NO_PROXY": "*", **more}  # fmt: skip


class Child:
    """One process in a session of its own, so that killing it takes its children too. Its output goes to `log`."""

    def __init__(
        self, argv: Sequence[str], *, log: pathlib.Path, env: Mapping[str, str], cwd: pathlib.Path | None = None
    ) -> None:
        self.argv, self.log = list(argv), log
        with log.open("ab") as out:
            self.process = subprocess.Popen(
                self.argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=dict(env), cwd=cwd, start_new_session=True
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    def wait_ready(self, ready: Callable[[], bool], *, timeout_s: float = 30.0) -> None:
        """Polls `ready`; an OSError counts as not yet. Raises StartFailed with the end of the log, and kills the child."""
        deadline = time.monotonic() + timeout_s
        while self.process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                if ready():
                    return
            time.sleep(0.02)
        code = self.process.poll()
        self.kill()
        fate = f"did not answer within {timeout_s:g} s" if code is None else f"ended with status {code}"
        raise StartFailed(f"{' '.join(self.argv)}\n{fate}; its log ends:\n{self.log_text()[-4000:]}")

    def log_text(self) -> str:
        return self.log.read_text(errors="replace")

    def signal(self, number: signal.Signals) -> None:
        """To the process and its children; nothing happens when it is gone."""
        if self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)

    def kill(self) -> None:
        """SIGKILL, and collected when this returns."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(30)

    def wait(self, timeout_s: float = 30.0) -> int:
        """The exit status, once it ends by itself."""
        return self.process.wait(timeout_s)
