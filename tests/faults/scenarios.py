"""What gets killed half-way: each scenario's moment before, its deed, and what is asked of the daemon that follows."""

from __future__ import annotations

import abc
import json
import pathlib
from typing import Any

from hotshelf_shared.digest import Digest
from hotshelf_shared.recipe import Recipe
from tests import objects
from tests.faults.inside import Inside
from tests.faults.invariants import Promise


class Scenario(abc.ABC):
    """`prepare` comes to the moment before, `deed` is what gets killed, and `again` is asked of the daemon that follows."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        self.store, self.origin, self.ack = folder / "store", folder / "origin", folder / "ack"
        self.trees = {"kept": objects.model("kept", unet=40_000, text_encoder=9_000, vae=5_000)}
        self.trees["deed"] = {path: data for path, data in objects.model("deed", unet=70_001, text_encoder=9_000).items()
                              if path.startswith(("unet/", "text_encoder/", "model_index"))}  # fmt: skip
        for name, tree in self.trees.items():
            objects.write(self.origin / name, tree)

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


class Snapshot(Acquire):
    """A snapshot of some of the files of another: nothing is fetched, only laid out."""

    def deed(self, daemon: Inside) -> None:
        lease = daemon.acquire("kept", allow_patterns=["unet/*", "vae/*", "model_index.json"])
        self.promise(lease)
        assert {path.partition("/")[0] for path in objects.read(self.store / lease["path"])} == {
            "unet",
            "vae",
            "model_index.json",
        }


class Evict(Scenario):
    """An eviction of a snapshot that shares a blob with one that stays."""

    def prepare(self, daemon: Inside) -> None:
        self.promise(daemon.acquire("kept"))
        daemon.release(daemon.acquire("deed"))

    def deed(self, daemon: Inside) -> None:
        daemon.evict(objects.manifest_of(self.trees["deed"]).revision)

    def again(self, daemon: Inside) -> None:
        daemon.release(daemon.acquire("deed"))
        self.deed(daemon)


class Bind(Scenario):
    """A worker hands in what it built (one blob is held already), binds it and leases it."""

    recipe = Recipe(base=Digest.of(b"base"))

    def prepare(self, daemon: Inside) -> None:
        self.promise(daemon.acquire("kept"))

    def deed(self, daemon: Inside) -> None:
        lease = daemon.bind(self.recipe, self.trees["deed"])
        self.promise(lease)
        assert objects.read(self.store / lease["path"]) == self.trees["deed"]


class Unbind(Bind):
    """An eviction of a pipeline."""

    def prepare(self, daemon: Inside) -> None:
        super().prepare(daemon)
        daemon.release(daemon.bind(self.recipe, self.trees["deed"]))

    def deed(self, daemon: Inside) -> None:
        daemon.evict(objects.manifest_of(self.trees["deed"]).revision)

    def again(self, daemon: Inside) -> None:
        daemon.release(daemon.bind(self.recipe, self.trees["deed"]))
        self.deed(daemon)


class Share(Scenario):
    """A worker hands a compile cache in, binds it and leases it."""

    data = objects.noise("bundle", 40_001)

    def prepare(self, daemon: Inside) -> None:
        self.promise(daemon.acquire("kept"))

    def deed(self, daemon: Inside) -> None:
        lease = daemon.share("cpu/9f2c", self.data)
        self.promise(lease)
        assert (self.store / lease["path"] / "archive").read_bytes() == self.data


class Unshare(Share):
    """An eviction of a bundle."""

    def prepare(self, daemon: Inside) -> None:
        super().prepare(daemon)
        self.revision = self.shared(daemon)

    def shared(self, daemon: Inside) -> str:
        daemon.release(lease := daemon.share("cpu/9f2c", self.data))
        return str(lease["revision"])

    def deed(self, daemon: Inside) -> None:
        daemon.evict(self.revision)

    def again(self, daemon: Inside) -> None:
        self.revision = self.shared(daemon)
        self.deed(daemon)


SCENARIOS: dict[str, type[Scenario]] = {
    "acquire": Acquire, "snapshot": Snapshot, "evict": Evict, "bind": Bind, "unbind": Unbind,
    "bundle": Share, "unbundle": Unshare,
}  # fmt: skip
