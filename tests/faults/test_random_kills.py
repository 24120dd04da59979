"""Sixteen workers, a daemon that is killed again and again at random moments, and an oracle that knows every tree there was.

TEST_SEED repeats the choices of a run that failed, whose seed the failure names.
"""

from __future__ import annotations

import contextlib
import http.client
import pathlib
import random
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests import objects
from tests.daemon_process import Daemon
from tests.faults.invariants import visible_wrongs, wrongs_after_restart
from tests.faults.scripted_origin import ScriptedOrigin
from tests.faults.soaking import SEED, in_rounds
from tests.faults.test_origin_cases import SEGMENT, settings

MakeDaemon = Callable[..., Daemon]
WORKERS, MODELS, VERSIONS = 16, 6, 3
#: In the short run, so many times so many; a failure names the seed of one of them.
ROUNDS, KILLS = 8, 25
#: What a worker may be told while the daemon is killed under it, or its room is another's.
EXPECTED = {"daemon_unavailable", "insufficient_space", "integrity_error", "in_use", "not_found", "timeout"}


class World:
    """The origin's models in versions, and what became wrong."""

    def __init__(self, origin: ScriptedOrigin, daemon: Daemon, seed: str) -> None:
        self.origin, self.daemon, self.seed = origin, daemon, seed
        self.trees: dict[str, objects.Tree] = {}
        self.versions: dict[str, list[objects.Tree]] = {}
        for number in range(MODELS):
            made = [
                objects.model((number, v), unet=(1 + number) * SEGMENT, text_encoder=9_000, vae=9_000) for v in range(VERSIONS)
            ]
            self.versions[f"m{number}"] = made
            self.trees |= {str(objects.manifest_of(tree).revision): tree for tree in made}
        for name in self.versions:
            self.publish(name, 0)
        self.wrongs: list[str] = []
        self.done = threading.Event()
        self.served = 0

    def publish(self, name: str, version: int) -> None:
        self.origin.objects |= {f"{name}/{path}": data for path, data in self.versions[name][version].items()}

    def work(self, number: int) -> None:
        chance = random.Random(f"{self.seed} worker {number}")
        while not self.done.is_set():
            try:
                self.step(chance)
            except (OSError, http.client.HTTPException):
                self.done.wait(0.1)  # no daemon at the moment
            except Exception as error:
                self.wrongs.append(f"{type(error).__name__}: {error}")

    def step(self, chance: random.Random) -> None:
        name, deed = chance.choice([*self.versions]), chance.random()
        if deed < 0.05:
            self.publish(name, chance.randrange(VERSIONS))
        elif deed < 0.15:
            tree = self.versions[name][chance.randrange(VERSIONS)]
            self.told(self.daemon.call("DELETE", f"/v1/snapshots/{objects.manifest_of(tree).revision}"))
        elif deed < 0.18:
            self.told(self.daemon.call("POST", "/v1/collect", {}))
        elif deed < 0.2:
            self.told(self.daemon.call("POST", "/v1/verify", {}))
        else:
            self.use(name, chance)

    def use(self, name: str, chance: random.Random) -> None:
        reply = self.daemon.acquire(f"s3://weights/{name}", timeout_s=20)
        if self.told(reply):
            return
        lease = reply.body
        for _ in range(chance.randrange(1, 3)):  # a lease holds while the daemon is away, too
            if objects.read(self.daemon.store / lease["path"]) != self.trees[lease["revision"]]:
                self.wrongs.append(f"{lease['revision']} is not what it was leased as")
        self.served += 1
        self.told(self.daemon.call("DELETE", f"/v1/leases/{lease['id']}"))

    def wait_for(self, more: int) -> None:
        """Until that many more requests have been served, which a busy machine takes its time for."""
        enough, until = self.served + more, time.monotonic() + 3
        while self.served < enough and time.monotonic() < until:
            time.sleep(0.005)

    def told(self, reply: Any) -> bool:
        """Whether it was refused; a refusal that nothing explains is wrong."""
        if reply.status < 300:
            return False
        if reply.body.get("code") not in EXPECTED:
            self.wrongs.append(str(reply.body))
        return True


def kill_at_random(make_daemon: MakeDaemon, kills: int, seed: str) -> None:
    with ScriptedOrigin() as origin:
        daemon = make_daemon(
            origins={"scripted": settings(origin.endpoint_url)},
            fetch={"segment_bytes": SEGMENT, "connections": 4},
            budget=3 << 20,
            revalidate_s=0.2,
        )
        world, chance = World(origin, daemon, seed), random.Random(seed)
        workers = [threading.Thread(target=world.work, args=(number,)) for number in range(WORKERS)]
        for worker in workers:
            worker.start()
        try:
            for _ in range(kills):
                world.wait_for(chance.randrange(4))
                time.sleep(chance.random() * 0.3)  # the moment is the point
                daemon.kill9()
                world.wrongs += [f"after a kill: {wrong}" for wrong in visible_wrongs(daemon.store)]
                daemon.start()
        finally:
            world.done.set()
            for worker in workers:
                worker.join(60)
        daemon.kill9()
        world.wrongs += wrongs_after_restart(daemon.store, [])
        if '"defect"' in daemon.log_text:
            world.wrongs.append("the log tells of a defect")
        assert world.wrongs == [], f"TEST_SEED={seed}: {world.wrongs[:5]}"
        assert world.served >= kills


@pytest.mark.parametrize("number", range(ROUNDS))
def test_a_daemon_killed_at_random_under_sixteen_workers_serves_no_wrong_byte(make_daemon: MakeDaemon, number: int) -> None:
    kill_at_random(make_daemon, KILLS, f"{SEED}-{number}")


@pytest.mark.soak
@pytest.mark.timeout(7_200)
def test_a_thousand_kills_change_nothing_about_that(tmp_path: pathlib.Path) -> None:
    """In rounds with a seed each, so that a failure names a short run."""

    def kill(kills: int, seed: str) -> None:
        with contextlib.ExitStack() as stack:

            def made(**settings: Any) -> Daemon:
                daemon = Daemon(tmp_path / seed, **settings)
                stack.callback(daemon.close)
                return daemon.start()

            kill_at_random(made, kills, seed)

    in_rounds("random kills", 1_000, KILLS, kill)
