"""One demo: a bucket, a daemon, workers that are processes of their own, and the origin switched off in between."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hotshelf.client import Client
from hotshelf.demo import origin
from hotshelf.demo.children import running, stop, uninterrupted
from hotshelf.demo.origin import ACCESS_KEY_ID, BUCKET, SECRET_ACCESS_KEY, Link
from hotshelf.unix import MAX_SOCKET_PATH_BYTES
from hotshelf_shared.errors import HotshelfError

LORAS = ["pink", "blueprint"]
WORKER_WAIT_S = 600.0
PRELOAD_WAIT_S = 120.0


@dataclass(slots=True)
class Stage:
    """Everything that stands while the demo plays. `switch_off` takes the origin away for good."""

    out: Path
    folder: Path
    config: Path
    socket: Path
    link: Link
    server: origin.Server
    _origin: contextlib.ExitStack

    @property
    def store(self) -> Path:
        return self.out / "shelf"

    def switch_off(self) -> None:
        self.link.close()
        self._origin.close()

    def run(self, *argv: str) -> tuple[str, float]:
        """A fresh Python process; its stdout, and the seconds until it answered. Raises HotshelfError with its last words."""
        with contextlib.ExitStack() as stack:
            words = stack.enter_context(tempfile.TemporaryFile())
            began = time.monotonic()
            with uninterrupted():
                child = subprocess.Popen(
                    [sys.executable, *argv],
                    env=self.environment,
                    cwd=self.folder,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=words,
                    start_new_session=True,
                )
                stack.callback(stop, child, gentle=False)
            select.select(filter(None, [child.stdout]), [], [], WORKER_WAIT_S)
            answered = time.monotonic()
            output = child.communicate(timeout=WORKER_WAIT_S)[0].decode(errors="replace")
            if child.returncode:
                words.seek(0)
                said = (words.read().decode(errors="replace") + output).strip()[-1500:]
                raise HotshelfError(
                    f"a worker failed ({' '.join(argv[:3])}): {said}", hint="See the files beside the pictures."
                )
            return output, answered - began

    def push(self, folder: Path, name: str) -> dict[str, Any]:
        """`hotshelf push`, as anybody would."""
        output, _ = self.run("-m", "hotshelf", "push", str(folder), f"s3://{BUCKET}/{name}", "--format", "json")
        report: dict[str, Any] = json.loads(output)
        return report

    def draw(self, name: str, prompt: str, loras: list[dict[str, Any]], seed: int) -> dict[str, Any]:
        """One job in a new worker process; the handler's answer, with `process_s` and the picture as NAME.png."""
        call = {"num_inference_steps": 12, "guidance_scale": 2.0}
        job = {"id": name, "input": {"model": "shapes", "prompt": prompt, "loras": loras, "seed": seed, **call}}
        output, seconds = self.run("-m", "hotshelf.handler", "--test_input", json.dumps(job))
        answer: dict[str, Any] = json.loads(output)
        shutil.copyfile(answer["image"], self.out / f"{name}.png")
        return {**answer, "process_s": seconds}

    def wait_held(self, names: list[str]) -> None:
        """Until the daemon has preloaded these names."""
        client = Client(socket=self.socket, store=self.store)
        until = time.monotonic() + PRELOAD_WAIT_S
        for name in names:
            while True:
                try:
                    client.snapshot(name)
                    break
                except HotshelfError:
                    if time.monotonic() > until:
                        raise
                    time.sleep(0.1)

    @property
    def environment(self) -> dict[str, str]:
        """What a worker gets; nothing of ours that could change what is shown."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HOTSHELF_", "B2_", "AWS_"))}
        return {
            **kept,
            "HOTSHELF_CONFIG": str(self.config),
            "HOTSHELF_SOCKET": str(self.socket),
            "PIPELINE_STORE": str(self.store),
            "HOTSHELF_AUTOSTART": "0",
            "HOTSHELF_OUTPUT_DIR": str(self.folder / "drawn"),
        }


@contextlib.contextmanager
def set_up(out: Path, rate: int) -> Iterator[Stage]:
    """The bucket behind its slow link. The store below `out` starts empty. Nothing is left running or lying about."""
    out.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(out / "shelf", ignore_errors=True)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hotshelf-demo-", ignore_cleanup_errors=True)))
        bucket = stack.enter_context(contextlib.ExitStack())
        server = bucket.enter_context(origin.server(folder))
        link = Link(server.port, rate)
        stack.callback(link.close)
        config = out / "hotshelf.yaml"
        config.write_text(_config(link.port))
        yield Stage(out, folder, config, stack.enter_context(_short(folder)) / "hotshelf.sock", link, server, bucket)


@contextlib.contextmanager
def _short(folder: Path) -> Iterator[Path]:
    """Where a socket's path fits: `folder`, or one in /tmp where the temporary folder's own name is long."""
    if len(os.fsencode(folder / "hotshelf.sock")) <= MAX_SOCKET_PATH_BYTES:
        yield folder
    else:
        with tempfile.TemporaryDirectory(prefix="hotshelf-demo-", dir="/tmp", ignore_cleanup_errors=True) as short:
            yield Path(short)


@contextlib.contextmanager
def daemon(stage: Stage) -> Iterator[None]:
    """hotshelfd on the stage's store and socket."""
    argv = [sys.executable, "-m", "hotshelf_daemon", "--config", str(stage.config)]
    argv += ["--store", str(stage.store), "--socket", str(stage.socket), "--listen", ""]
    with running(argv, log=stage.folder / "hotshelfd.log", answers=lambda: _accepts(stage.socket), env=stage.environment):
        yield


def _accepts(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except (OSError, http.client.HTTPException):
            return False
        return True


def _config(port: int) -> str:
    """JSON is YAML."""
    endpoint = {"endpoint_url": f"http://127.0.0.1:{port}", "region": "us-east-1", "buckets": [BUCKET]}
    keys: Mapping[str, str] = {"access_key_id": ACCESS_KEY_ID, "secret_access_key": SECRET_ACCESS_KEY}
    loras = {name: {"source": f"s3://{BUCKET}/loras/{name}", "preload": True} for name in LORAS}
    body = {
        "origins": {"demo": {**endpoint, **keys}},
        "models": {"shapes": {"source": f"s3://{BUCKET}/shapes"}},
        "loras": loras,
    }
    return json.dumps(body, indent=2)
