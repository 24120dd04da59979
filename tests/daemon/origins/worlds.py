"""One world per kind of origin: somewhere to put objects, and the origin that reads them."""

from __future__ import annotations

import abc
import contextlib
import itertools
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from google.auth.credentials import AnonymousCredentials
from google.cloud import storage

from hotshelf_daemon.config import HubSettings, Settings
from hotshelf_daemon.config.settings import OriginSettings
from hotshelf_daemon.objects import OriginObject
from hotshelf_daemon.origin import MemoryOrigin, Origin, gcs, hf, https
from hotshelf_daemon.origin.file import FileOrigin
from hotshelf_daemon.origin.s3 import S3Origin, client_for
from tests.faults.scripted_gcs import ScriptedGcs
from tests.servers.gcs import GcsEmulator
from tests.servers.hub import Hub
from tests.servers.nginx import Nginx
from tests.servers.s3 import S3Origin as Server


class World(abc.ABC):
    """`base` goes before every key: what keeps tests apart on one origin. A client takes long to make."""

    origin: Origin
    can_list = True
    #: Whether what was listed keeps its bytes under its key for ever, whatever comes after it.
    is_immutable = False
    _base = ""

    @property
    def base(self) -> str:
        return self._base

    @base.setter
    def base(self, prefix: str) -> None:
        self._base = f"{prefix}/"

    @abc.abstractmethod
    def put(self, objects: Mapping[str, bytes]) -> None: ...

    @abc.abstractmethod
    def remove(self, key: str) -> None: ...

    @abc.abstractmethod
    def make_marker(self, folder: str) -> None:
        """The empty object, or directory, that stands for an empty folder."""

    @contextlib.contextmanager
    def unreachable(self) -> Iterator[Origin | None]:
        """The same origin when nobody answers; None where that cannot be."""
        yield None

    def head(self, key: str) -> OriginObject | None:
        return self.origin.head(self.base + key)

    def found(self, key: str) -> OriginObject:
        seen = self.head(key)
        assert seen is not None
        return seen

    def listed(self, folder: str) -> list[str]:
        return sorted(obj.key.removeprefix(self.base) for obj in self.origin.list(self.base + folder))

    def bytes_of(self, obj: OriginObject, start: int, stop: int, *, buffer_bytes: int = 1 << 16) -> bytes:
        buffer, data = memoryview(bytearray(buffer_bytes)), bytearray()
        with self.origin.open(obj, start, stop) as body:
            while taken := body.readinto(buffer):
                data += buffer[:taken]
        return bytes(data)


class MemoryWorld(World):
    def __init__(self) -> None:
        self.memory = self.origin = MemoryOrigin()

    def put(self, objects: Mapping[str, bytes]) -> None:
        self.memory.objects.update({self.base + key: data for key, data in objects.items()})

    def remove(self, key: str) -> None:
        del self.memory.objects[self.base + key]

    def make_marker(self, folder: str) -> None:
        self.memory.objects[f"{self.base}{folder}/"] = b""

    @contextlib.contextmanager
    def unreachable(self) -> Iterator[Origin]:
        self.memory.offline = True
        yield self.memory
        self.memory.offline = False


class FileWorld(World):
    def __init__(self, folder: pathlib.Path) -> None:
        self.root = folder / "root"
        self.root.mkdir()
        self.origin = FileOrigin(str(self.root))

    @property
    def base(self) -> str:
        return f"{self.root}/{self._base}".lstrip("/")

    @base.setter
    def base(self, prefix: str) -> None:
        self._base = f"{prefix}/"

    def put(self, objects: Mapping[str, bytes]) -> None:
        for key, data in objects.items():
            target = pathlib.Path(f"/{self.base}{key}")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)

    def remove(self, key: str) -> None:
        os.unlink(f"/{self.base}{key}")

    def make_marker(self, folder: str) -> None:
        os.makedirs(f"/{self.base}{folder}", exist_ok=True)


class HttpsWorld(World):
    """A web server over TLS, whose versions tell seconds apart, so every put is a second later than the one before."""

    can_list = False

    def __init__(self, server: Nginx, ca_bundle: pathlib.Path) -> None:
        self._server, self._made_at = server, itertools.count(1_700_000_000)
        self.settings = Settings(origins={"cdn": OriginSettings(endpoint_url=server.endpoint_url, ca_bundle=str(ca_bundle))})
        self.origin = https.origin_of(f"127.0.0.1:{server.port}", self.settings)

    def put(self, objects: Mapping[str, bytes]) -> None:
        for key, data in objects.items():
            target = self._server.root / f"{self.base}{key}"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
            os.utime(target, (when := next(self._made_at), when))

    def remove(self, key: str) -> None:
        (self._server.root / f"{self.base}{key}").unlink()

    def make_marker(self, folder: str) -> None:
        (self._server.root / f"{self.base}{folder}").mkdir(parents=True, exist_ok=True)

    @contextlib.contextmanager
    def unreachable(self) -> Iterator[Origin]:
        nobody = Settings(hosts=["127.0.0.1:9"])
        yield https.origin_of("127.0.0.1:9", nobody)


def gcs_origin(endpoint_url: str, **more: Any) -> gcs.GcsOrigin:
    given = {"endpoint_url": endpoint_url, "unsigned": True, **more}
    return gcs.origin_of("weights", Settings.model_validate({"gcs": given, "fetch": {"connect_timeout_s": 2}}))


class ScriptedGcsWorld(World):
    def __init__(self, server: ScriptedGcs) -> None:
        self._server = server
        self.origin = gcs_origin(server.endpoint_url)

    def put(self, objects: Mapping[str, bytes]) -> None:
        self._server.objects.update({self.base + key: data for key, data in objects.items()})

    def remove(self, key: str) -> None:
        del self._server.objects[self.base + key]

    def make_marker(self, folder: str) -> None:
        self.put({f"{folder}/": b""})

    @contextlib.contextmanager
    def unreachable(self) -> Iterator[Origin]:
        yield gcs_origin("http://127.0.0.1:9")


class GcsEmulatorWorld(ScriptedGcsWorld):
    """What is put goes through google's own client."""

    def __init__(self, server: GcsEmulator, stack: contextlib.ExitStack) -> None:
        self.origin = gcs_origin(server.endpoint_url)
        client = stack.enter_context(
            storage.Client("none", AnonymousCredentials(), client_options={"api_endpoint": server.endpoint_url})
        )
        client._bucket_metadata_cache = None  # else it asks in the background, and after the end
        self._bucket = client.create_bucket("weights")

    def put(self, objects: Mapping[str, bytes]) -> None:
        for key, data in objects.items():
            self._bucket.blob(self.base + key).upload_from_string(data, "application/octet-stream")

    def remove(self, key: str) -> None:
        self._bucket.delete_blob(self.base + key)


class HfWorld(World):
    """A repository of its own for each base, and a commit for each change: every key names one."""

    is_immutable = True

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self.origin = hf.origin_of(Settings(hf=HubSettings(endpoint=hub.endpoint_url)))

    @property
    def base(self) -> str:
        return f"{self._base}/{self._hub.repos[self._base].refs['main']}/"

    @base.setter
    def base(self, prefix: str) -> None:
        self._base = f"world/{prefix.replace('/', '-')}"
        self._hub.push(self._base, {})

    @property
    def _tree(self) -> dict[str, bytes]:
        repo = self._hub.repos[self._base]
        return repo.commits[repo.refs["main"]]

    def put(self, objects: Mapping[str, bytes]) -> None:
        self._hub.push(self._base, {**self._tree, **objects})

    def remove(self, key: str) -> None:
        self._hub.push(self._base, {path: data for path, data in self._tree.items() if path != key})

    def make_marker(self, folder: str) -> None:
        """Git has none."""

    @contextlib.contextmanager
    def unreachable(self) -> Iterator[Origin]:
        yield hf.origin_of(Settings(hf=HubSettings(endpoint="http://127.0.0.1:9")))


class S3World(World):
    """`public` makes what is put readable for those who do not sign; moto asks for that."""

    def __init__(
        self, server: Server, bucket: str, stack: contextlib.ExitStack, *, public: bool = False, **origin: Any
    ) -> None:
        self.server, self.bucket = server, bucket
        self.client = stack.enter_context(server.client())
        self.origin = s3_origin(server, bucket, **origin)
        self._more: Any = {"ACL": "public-read"} if public else {}

    def put(self, objects: Mapping[str, bytes]) -> None:
        for key, data in objects.items():
            self.client.put_object(Bucket=self.bucket, Key=self.base + key, Body=data, **self._more)

    def remove(self, key: str) -> None:
        self.client.delete_object(Bucket=self.bucket, Key=self.base + key)

    def make_marker(self, folder: str) -> None:
        self.put({f"{folder}/": b""})

    @contextlib.contextmanager
    def unreachable(self) -> Iterator[Origin]:
        yield s3_origin(self.server, self.bucket, endpoint_url="http://127.0.0.1:9")


def s3_origin(server: Server, bucket: str, *, without: Iterable[str] = (), label: str = "there", **changes: Any) -> S3Origin:
    """An S3Origin on a test server; `without` names settings to leave out, `changes` replace them."""
    given = {name: value for name, value in server.settings(bucket, **changes).items() if name not in without}
    settings = OriginSettings.model_validate(given)
    return S3Origin(client_for(settings, Settings.model_validate({"fetch": {"connect_timeout_s": 2}})), bucket, label)
