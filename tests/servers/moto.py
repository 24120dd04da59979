"""moto's server as an S3 origin: it accepts any secret, and knows virtual-hosted buckets and session tokens."""

from __future__ import annotations

import pathlib
import sys

from tests.servers.child import Child, clean_environment
from tests.servers.ports import free_ports
from tests.servers.s3 import S3Origin


class Moto(S3Origin):
    """`with Moto(folder) as origin:`. A `stop()` keeps the port; what was uploaded is forgotten."""

    access_key_id = "moto-tests"
    secret_access_key = "any"

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        self._child: Child | None = None
        self.choose_ports()

    def choose_ports(self) -> None:
        (self.port,) = free_ports(1)

    def start(self) -> None:
        """Returns when it answers. Raises StartFailed."""
        self.folder.mkdir(parents=True, exist_ok=True)
        argv = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]
        self._child = Child(argv, log=self.folder / "moto.log", env=clean_environment(HOME=str(self.folder)))
        self._child.wait_ready(self.answers, timeout_s=60)

    def stop(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child = None
