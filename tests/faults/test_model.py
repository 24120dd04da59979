"""The shelf against a model of it: whatever is acquired, released, pinned, evicted, changed or crashed, in any order."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pathlib
import shutil
import tempfile
from typing import Any

import hypothesis
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from hotshelf_daemon import app
from hotshelf_daemon.acquire import (
    Bundles,
    Desk,
    Freshness,
    Gauge,
    Keeping,
    Leasing,
    Names,
    Peer,
    Pipelines,
    Preparer,
    Refreshing,
    Turning,
    Want,
    published_bundles,
    published_pipelines,
)
from hotshelf_daemon.config import Settings
from hotshelf_daemon.ingest import Ingests
from hotshelf_daemon.metrics import Metrics
from hotshelf_daemon.origin import MemoryOrigin
from hotshelf_shared.errors import HotshelfError, InsufficientSpace, InUse, NotFound
from hotshelf_shared.source import Source
from hotshelf_shared.wire import AcquireRequest, LeaseAnswer, Wish
from tests import objects
from tests.daemon.test_desk import OneOrigin
from tests.faults.invariants import visible_wrongs

#: One worker: whoever holds the room himself is refused at once.
CLIENT = "0123456789abcdef"
PEER = Peer(uid=1, gid=1, pid=1)
NAMES, SIZE, BUDGET = ("a", "b", "c", "d"), 40_000, 130_000
EXAMPLES = 40 if hypothesis.settings().max_examples <= 100 else 2_000


class OnlyWhenTold(Freshness):
    """Sources are looked at again when the model says so, and never by themselves."""

    def hit(self, want: Want) -> None:
        """Nothing."""

    def fetched(self, want: Want) -> None:
        """Nothing."""


class Shelf(RuleBasedStateMachine):
    """Up to two of the four models fit besides what they share."""

    @initialize()
    def open(self) -> None:
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="hs-model-"))
        self.runner = asyncio.Runner()
        self.origin = MemoryOrigin()
        self.trees: dict[str, objects.Tree] = {}
        self.leases: list[LeaseAnswer] = []
        self.pins: set[str] = set()
        self.back: dict[str, str] = {}
        self.ghosts: set[str] = set()
        self.rotten = False
        self.versions = dict.fromkeys(NAMES, 0)
        for name in NAMES:
            self.change(name)
        self.start()

    def start(self) -> None:
        settings = Settings.model_validate({"store": str(self.folder / "store"), "budget": BUDGET, "revalidate_s": 3_600})
        self.shelf = app.open_shelf(settings, Metrics("test"))
        names, ingests, origins = Names(settings), Ingests(self.shelf), OneOrigin(self.origin)
        pipelines = Pipelines(self.shelf, published_pipelines(self.shelf, origins))  # type: ignore[arg-type]
        bundles = Bundles(self.shelf, published_bundles(self.shelf, origins))  # type: ignore[arg-type]
        preparer = Preparer(self.shelf, origins, ingests, pipelines=pipelines, bundles=bundles)  # type: ignore[arg-type]
        self.leasing = Leasing(self.shelf)
        self.keeping = Keeping(self.shelf, names, preparer)
        self.freshness = OnlyWhenTold(self.shelf, preparer)
        self.refreshing, self.turning = Refreshing(self.shelf, names, preparer), Turning(self.shelf, names)
        self.names = names
        self.desk = Desk(self.shelf, names, preparer, self.freshness, self.leasing, pipelines=pipelines, bundles=bundles)
        self.run(self.leasing.resume())

    def run(self, work: Any) -> Any:
        return self.runner.run(work)

    def teardown(self) -> None:
        if hasattr(self, "shelf"):
            self.shelf.index.close()
            self.shelf.layout.close()
            self.runner.close()
            shutil.rmtree(self.folder, ignore_errors=True)

    # ---- what may happen

    @rule(name=st.sampled_from(NAMES))
    def change(self, name: str) -> None:
        self.versions[name] += 1
        tree = {
            "unet.safetensors": objects.safetensors((name, self.versions[name]), SIZE),
            "shared.safetensors": objects.safetensors("shared", 5_000),
            "config.json": b"{}",
        }
        self.origin.objects.update({f"{name}/{path}": data for path, data in tree.items()})
        self.trees[str(objects.manifest_of(tree).revision)] = tree

    @rule(wanted=st.lists(st.sampled_from(NAMES), min_size=1, max_size=3))
    def acquire(self, wanted: list[str]) -> None:
        """Several clients at once."""

        async def one(name: str) -> LeaseAnswer | HotshelfError:
            request = AcquireRequest((Wish(Source.parse(f"s3://b/{name}")),), timeout_s=20, client=CLIENT)
            try:
                (answer,) = await self.desk.acquire(request, PEER, Gauge(name))
            except HotshelfError as refusal:
                return refusal
            return answer

        async def all_of_them() -> list[LeaseAnswer | HotshelfError]:
            return await asyncio.gather(*map(one, wanted))

        for answer in self.run(all_of_them()):
            if isinstance(answer, LeaseAnswer):
                self.leases.append(answer)
                assert answer.revision == self.back.get(answer.source, answer.revision), "a rollback was undone"
            elif isinstance(answer, NotFound):
                assert any(f"s3://b/{name}" in self.back for name in wanted), answer
            else:
                assert isinstance(answer, InsufficientSpace), answer
                held = self.leases or self.pins or self.ghosts or self.shelf.held_bytes()["quarantine"]
                assert held or len(wanted) > 1, "an empty shelf has room for one"

    @rule(name=st.sampled_from(NAMES))
    def roll_back(self, name: str) -> None:
        source = f"s3://b/{name}"
        with contextlib.suppress(NotFound):
            self.back[source] = self.run(self.turning.roll_back(source, uid=1, dry_run=False))["revision"]

    @rule(name=st.sampled_from(NAMES))
    def refresh(self, name: str) -> None:
        source = f"s3://b/{name}"
        with contextlib.suppress(InsufficientSpace):
            told = self.run(self.refreshing.refresh(source, Gauge(source), timeout_s=20, is_admin=True))
            assert self.trees[told["revision"]]["unet.safetensors"] == self.origin.objects[f"{name}/unet.safetensors"]
            self.back.pop(source, None)

    @rule(name=st.sampled_from(NAMES))
    def look(self, name: str) -> None:
        with contextlib.suppress(InsufficientSpace):
            self.run(self.freshness.revalidate(self.names.want(Wish(Source.parse(f"s3://b/{name}")))))

    # Which of several clients gets the last room is a matter of threads: nothing is drawn that depends on it, or a run could
    # not be repeated.
    @rule(number=st.integers(0, 99))
    def release(self, number: int) -> None:
        if self.leases:
            lease = self.leases.pop(number % len(self.leases))
            self.run(self.leasing.release(lease.id, PEER))

    @rule(name=st.sampled_from(NAMES))
    def pin(self, name: str) -> None:
        self.run(self.keeping.pin(f"s3://b/{name}", uid=1))
        self.pins.add(name)

    @precondition(lambda self: self.pins)
    @rule()
    def unpin(self) -> None:
        self.run(self.keeping.unpin(f"s3://b/{self.pins.pop()}"))

    @rule(data=st.data())
    def evict(self, data: st.DataObject) -> None:
        revision = data.draw(st.sampled_from(sorted(self.trees)))
        held = any(str(lease.revision) == revision for lease in self.leases)
        try:
            self.run(self.keeping.evict(revision))
        except NotFound:
            return
        except InUse:
            assert held or self.pins or revision in self.ghosts
            return
        assert not held, "a lease was broken"

    @rule()
    def collect(self) -> None:
        self.run(self.keeping.collect(dry_run=False))

    @rule()
    def verify(self) -> None:
        found = self.run(self.keeping.verify())
        assert self.rotten or not found["wrong"]
        self.forget_damaged()
        self.rotten = False

    @rule(number=st.integers(0, 99))
    def rot(self, number: int) -> None:
        blobs = sorted((self.folder / "store" / "blobs" / "sha256").glob("*/*"))
        if blobs:
            blob = blobs[number % len(blobs)]
            os.chmod(blob, 0o600)
            blob.write_bytes(bytes(blob.stat().st_size + 1))
            self.rotten = True

    @rule()
    def crash(self) -> None:
        """All that is in memory is gone; what the index had not been told is, too."""
        self.shelf.index.close()
        self.shelf.layout.close()
        self.start()
        self.forget_damaged()
        self.rotten = False

    def forget_damaged(self) -> None:
        """A lease on what rotted away holds nothing any more: its client asks again when a path is missing."""
        ready = {row["revision"] for row in self.rows("SELECT revision FROM v_snapshots WHERE state = 'ready'")}
        self.ghosts |= {str(lease.revision) for lease in self.leases if lease.revision not in ready}
        self.leases = [lease for lease in self.leases if lease.revision in ready]

    def rows(self, query: str) -> list[Any]:
        found: list[Any] = self.shelf.index.read(lambda db: db.execute(query).fetchall())
        return found

    # ---- what must be true

    @invariant()
    def what_is_leased_is_there_and_right(self) -> None:
        if hasattr(self, "shelf") and not self.rotten:
            for lease in self.leases:
                assert objects.read(self.folder / "store" / lease.path) == self.trees[str(lease.revision)]

    @invariant()
    def nothing_visible_is_wrong(self) -> None:
        if hasattr(self, "shelf") and not self.rotten:
            damaged = [row["revision"][7:] for row in self.rows("SELECT revision FROM v_snapshots WHERE state = 'damaged'")]
            wrongs = visible_wrongs(self.folder / "store")
            assert [wrong for wrong in wrongs if not any(name in wrong for name in damaged)] == []

    @invariant()
    def the_budget_is_kept(self) -> None:
        if hasattr(self, "shelf"):
            held = self.shelf.held_bytes()
            assert sum(held.values()) - held["quarantine"] <= BUDGET


TestShelf = Shelf.TestCase
#: Without shrinking: a failure here is told at once, and shrinking takes minutes.
TestShelf.settings = hypothesis.settings(
    max_examples=EXAMPLES, stateful_step_count=30, deadline=None, phases=(hypothesis.Phase.explicit, hypothesis.Phase.generate)
)
