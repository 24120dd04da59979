"""Scenarios that bring something from an origin, and what every scenario is."""

from __future__ import annotations

import abc
import contextlib
import json
import pathlib
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

from hotshelf_shared.digest import Digest
from tests import objects
from tests.faults.inside import Inside, run_inside
from tests.faults.invariants import Promise
from tests.servers.nginx import Nginx

SEGMENT_BYTES = 16 << 10
SETTINGS = {"fetch": {"segment_bytes": SEGMENT_BYTES, "connections": 1}, "budget": "100%", "revalidate_s": 3_600}


class Scenario(abc.ABC):
    """`prepare` comes to the moment before, `deed` is what gets killed, and `again` is asked of the daemon that follows."""

    #: The largest file of what is fetched, in bytes.
    unet = 70_001

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        self.store, self.origin, self.ack = folder / "store", folder / "origin", folder / "ack"
        self.trees = {"kept": objects.model("kept", unet=40_000, text_encoder=9_000, vae=5_000)}
        self.trees["deed"] = {path: data for path, data in objects.model("deed", unet=self.unet, text_encoder=9_000).items()
                              if path.startswith(("unet/", "text_encoder/", "model_index"))}  # fmt: skip
        for name, tree in self.trees.items():
            objects.write(self.origin / name, self.laid(tree))

    @classmethod
    @contextlib.contextmanager
    def serving(cls, folder: pathlib.Path) -> Iterator[None]:
        """Around everything: what it needs beside the daemon. Scenarios lie in folders below this one."""
        yield

    def run(self, socket: str, story: Callable[[Inside], None]) -> None:
        """The daemon, in this process."""
        where = {"base": f"file://{self.origin}", "roots": [str(self.origin)]}
        settings = {**SETTINGS, **where, **self.settings()}
        models = {
            name: {"source": f"{settings['base']}/{name}"} for name in self.trees
        }  # so that they show below hub/ and names/
        run_inside(self.store, socket=self.folder / socket, story=story, **settings, models=models)

    def settings(self) -> dict[str, Any]:
        """Beside the usual ones."""
        return {}

    def laid(self, tree: objects.Tree) -> objects.Tree:
        """The files at the origin."""
        return tree

    def promise(self, lease: dict[str, Any]) -> None:
        """From here on it was acknowledged."""
        line = {"revision": lease["revision"], "files": {file["path"]: file["digest"] for file in lease["files"]}}
        with self.ack.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def promises(self) -> list[Promise]:
        return [Promise(**json.loads(line)) for line in self.ack.read_text().splitlines()]

    @abc.abstractmethod
    def prepare(self, daemon: Inside) -> None: ...

    @abc.abstractmethod
    def deed(self, daemon: Inside) -> None: ...

    def again(self, daemon: Inside) -> None:
        self.deed(daemon)


class Acquire(Scenario):
    """A miss: segments, verification, the durable commit of several blobs (one held already), the snapshot, the answer."""

    def prepare(self, daemon: Inside) -> None:
        self.promise(daemon.acquire("kept"))

    def deed(self, daemon: Inside) -> None:
        lease = daemon.acquire("deed")
        self.promise(lease)
        assert objects.read(self.store / lease["path"]) == self.trees["deed"]


class Fetch(Acquire):
    """The same over HTTP, in ranges that go through pipes."""

    unet = 300_001
    endpoint_url: ClassVar[str] = ""

    @classmethod
    @contextlib.contextmanager
    def serving(cls, folder: pathlib.Path) -> Iterator[None]:
        with tempfile.TemporaryDirectory(prefix="hs-") as own, Nginx(pathlib.Path(own), root=folder) as server:
            cls.endpoint_url = server.endpoint_url
            yield

    def settings(self) -> dict[str, Any]:
        return {
            "base": f"s3://{self.folder.name}/origin",
            "origins": {"o": {"endpoint_url": self.endpoint_url, "unsigned": True}},
            "fetch": {"segment_bytes": 8 * SEGMENT_BYTES, "connections": 1},
        }

    def laid(self, tree: objects.Tree) -> objects.Tree:
        return objects.published(tree)


class Cached(Fetch):
    """What shows below model_cache/ and names/ becomes another revision there."""

    unet = 70_001

    def settings(self) -> dict[str, Any]:
        settings = super().settings()
        return {**settings, "model_cache": [{"repo_id": f"{settings['base']}/deed"}]}

    @property
    def newer(self) -> objects.Tree:
        return {**self.trees["deed"], "unet/config.json": b'{"newer": true}'}

    @property
    def shown(self) -> list[objects.Tree]:
        places = (f"model_cache/{self.folder.name}/origin/deed", "names/models/deed")
        return [objects.read(self.store / place) for place in places]

    def prepare(self, daemon: Inside) -> None:
        self.promise(daemon.acquire("deed"))
        assert self.shown == [self.trees["deed"]] * 2
        objects.write(self.origin / "deed", self.laid(self.newer))

    def deed(self, daemon: Inside) -> None:
        daemon.refresh("deed")
        self.promise(daemon.acquire("deed"))
        assert self.shown == [self.newer] * 2

    def again(self, daemon: Inside) -> None:
        assert all(tree in (self.trees["deed"], self.newer) for tree in self.shown)
        self.deed(daemon)


class Adopt(Fetch):
    """The largest file comes from a Hugging Face cache, and the rest over HTTP."""

    def __init__(self, folder: pathlib.Path) -> None:
        super().__init__(folder)
        for name, tree in self.trees.items():
            data = tree["unet/diffusion_pytorch_model.safetensors"]
            hexed = Digest.of(data).hex
            objects.write(folder / "cache" / "models--org--name" / "blobs", {hexed: data})
            (self.origin / name / "blobs" / "sha256" / hexed).unlink()  # it is only there

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "hf": {"caches": [str(self.folder / "cache")]}}
