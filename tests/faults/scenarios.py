"""What gets killed half-way: each scenario's moment before, its deed, and what is asked of the daemon that follows."""

from __future__ import annotations

from typing import Any, ClassVar

from hotshelf_shared.digest import Digest
from hotshelf_shared.recipe import Recipe
from tests import objects
from tests.faults.fetched import Acquire, Adopt, Cached, Fetch, Scenario
from tests.faults.inside import Inside


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


class Rollback(Scenario):
    """A source goes back to its previous revision: two refs turn, one is forgotten, a row freezes it; and four records."""

    unet_only: ClassVar[dict[str, Any]] = {"allow_patterns": ["unet/*"]}
    late: ClassVar[dict[str, Any]] = {"allow_patterns": ["unet/config.json"]}

    def prepare(self, daemon: Inside) -> None:
        for more in ({}, self.unet_only):
            self.promise(daemon.acquire("deed", **more))
        objects.write(self.origin / "deed", self.newer)
        daemon.refresh("deed")
        daemon.acquire("deed", **self.late)

    @property
    def newer(self) -> objects.Tree:
        return {**self.trees["deed"], "unet/config.json": b'{"newer": true}'}

    def deed(self, daemon: Inside) -> None:
        daemon.rollback("deed")
        self.promise(self.acquired(daemon, self.trees["deed"]))

    def acquired(self, daemon: Inside, tree: objects.Tree) -> dict[str, Any]:
        """Both selections are of that tree."""
        lease, part = daemon.acquire("deed"), daemon.acquire("deed", **self.unet_only)
        assert objects.read(self.store / lease["path"]) == tree
        assert objects.read(self.store / part["path"]) == {path: tree[path] for path in tree if path.startswith("unet/")}
        return lease

    def again(self, daemon: Inside) -> None:
        """As it was, or all of it back and frozen; and a refresh ends that."""
        told = [ref["freshness"] for one in daemon.snapshots() for ref in one["refs"]]
        frozen = told == ["rolled_back"] * 2
        assert frozen or told == ["fresh"] * 3
        self.acquired(daemon, self.trees["deed"] if frozen else self.newer)
        assert daemon.refresh("deed")["unfrozen"] == frozen
        self.acquired(daemon, self.newer)
        self.deed(daemon)


class Refresh(Rollback):
    """A refresh ends a rollback: two refs turn, and what froze the source goes."""

    def prepare(self, daemon: Inside) -> None:
        super().prepare(daemon)
        daemon.rollback("deed")

    def deed(self, daemon: Inside) -> None:
        assert daemon.refresh("deed")["unfrozen"]
        self.promise(self.acquired(daemon, self.newer))

    def again(self, daemon: Inside) -> None:
        """As it was, or all of it forth and free."""
        told = [ref["freshness"] for one in daemon.snapshots() for ref in one["refs"]]
        frozen = told == ["rolled_back"] * 2
        assert frozen or told == ["fresh"] * 2
        self.acquired(daemon, self.trees["deed"] if frozen else self.newer)
        if not frozen:
            daemon.rollback("deed")
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
    "acquire": Acquire, "fetch": Fetch, "snapshot": Snapshot, "evict": Evict, "bind": Bind, "unbind": Unbind,
    "bundle": Share, "unbundle": Unshare, "rollback": Rollback, "refresh": Refresh, "cached": Cached,
    "adopt": Adopt,
}  # fmt: skip
