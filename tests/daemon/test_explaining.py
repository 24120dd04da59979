"""`hotshelf why`, `du`, `gc` and `verify`: what an operator learns about a source, the room and the bytes."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest
from click.testing import CliRunner, Result

from hotshelf.cli import hotshelf
from hotshelf_daemon.acquire.explaining import summary
from tests import objects
from tests.daemon.conftest import MakeDaemon
from tests.daemon.looking import granted, refused
from tests.daemon_process import Daemon
from tests.objects import Digest

SHARED, OWN, OTHER = (objects.noise(name, size) for name, size in (("shared", 30_000), ("own", 20_000), ("other", 10_000)))


@pytest.fixture
def origin(tmp_path: pathlib.Path) -> pathlib.Path:
    """Two models that have a file in common."""
    for name, own in (("one", OWN), ("two", OTHER)):
        folder = tmp_path / "origin" / name
        folder.mkdir(parents=True)
        (folder / "shared.safetensors").write_bytes(SHARED)
        (folder / "own.safetensors").write_bytes(own)
    return tmp_path / "origin"


@pytest.fixture
def daemon(make_daemon: MakeDaemon, origin: pathlib.Path) -> Daemon:
    return make_daemon(
        roots=[str(origin)], models={name: {"source": f"file://{origin}/{name}"} for name in ("one", "two", "never")}
    )


def run(daemon: Daemon, *words: str) -> Result:
    at = ["--socket", str(daemon.socket), "--store", str(daemon.store)]
    return CliRunner().invoke(hotshelf, [*at, *words], prog_name="hotshelf")


def told(daemon: Daemon, *words: str, code: int = 0) -> Any:
    result = run(daemon, *words, "--format", "json")
    assert result.exit_code == code, result.stderr
    return json.loads(result.stdout)


def use(daemon: Daemon, source: str) -> Any:
    lease = granted(daemon.acquire(source))
    assert daemon.call("DELETE", f"/v1/leases/{lease['id']}").status == 204
    return lease


# ---- why


def test_why_says_who_holds_what_is_here(daemon: Daemon) -> None:
    lease = granted(daemon.acquire("one"))
    granted(daemon.call("PUT", "/v1/pins/one"))
    found = told(daemon, "why", "one")
    assert found["summary"].startswith("It is here since ")
    assert found["summary"].endswith("held by 1 leases and a pin.")
    assert [one["revision"] for one in found["refs"]] == [lease["revision"]]
    assert [one["id"] for one in found["leases"]] == [lease["id"]]
    assert [one["target"] for one in found["pins"]] == ["one"]
    assert [one["outcome"] for one in found["requests"]] == ["miss"]
    shown = run(daemon, "why", "one").stdout
    assert "leases:" in shown
    assert "last acquires:" in shown


def test_why_says_that_nobody_holds_it(daemon: Daemon) -> None:
    use(daemon, "one")
    assert "held by nobody" in told(daemon, "why", "one")["summary"]


def test_why_says_when_and_why_it_was_evicted(daemon: Daemon) -> None:
    lease = use(daemon, "one")
    granted(daemon.call("DELETE", f"/v1/snapshots/{lease['revision']}"))
    found = told(daemon, "why", "one")
    assert found["summary"].startswith("It is not here: it was evicted at ")
    assert found["summary"].endswith("the reason was: asked.")
    assert found["evictions"][0]["bytes"] == len(SHARED) + len(OWN)


def test_why_says_what_the_last_acquire_failed_of(daemon: Daemon) -> None:
    refused(daemon.acquire("never"), "not_found")
    assert told(daemon, "why", "never")["summary"].endswith("ended with not_found.")


def test_why_says_that_it_is_damaged(daemon: Daemon) -> None:
    use(daemon, "one")
    spoil(daemon, OWN)
    assert told(daemon, "verify", code=4)["wrong"] == [Digest.of(OWN)]
    assert "is damaged (wrong bytes): the next acquire heals it" in told(daemon, "why", "one")["summary"]


def test_why_of_what_nobody_ever_wanted_and_of_what_is_no_name(daemon: Daemon) -> None:
    assert told(daemon, "why", "two")["summary"].endswith("nobody has acquired it.")
    assert run(daemon, "why", "tow").exit_code == 3
    refused(daemon.call("GET", "/v1/why"), "invalid_request")


def test_an_acquire_of_several_is_told_of_each_and_of_no_other_that_begins_alike(daemon: Daemon, origin: pathlib.Path) -> None:
    granted(daemon.call("POST", "/v1/leases", {"sources": ["one", "two"]}))
    assert [one["outcome"] for one in told(daemon, "why", "two")["requests"]] == ["miss"]
    assert told(daemon, "why", f"file://{origin}/on")["requests"] == []


def test_what_is_on_its_way_comes_before_what_became_of_it_before() -> None:
    preparing = {"state": "preparing", "opened_at": "2026-11-22 10:00:00", "bytes": 7_000, "files": 3}
    nothing: dict[str, Any] = {"refs": [], "leases": [], "pins": [], "requests": [], "evictions": [], "events": []}
    assert summary({**nothing, "preparing": [preparing]}) == (
        "It is on its way since 2026-11-22 10:00:00 UTC: 7,000 bytes in 3 files."
    )


# ---- du, gc, verify


def test_du_tells_what_would_be_free_from_what_others_hold_too(daemon: Daemon) -> None:
    for name in ("one", "two"):
        use(daemon, name)
    daemon.kill9()  # the index answers alone
    found = told(daemon, "du")
    assert [(one["own_bytes"], one["bytes"]) for one in found["snapshots"]] == [
        (len(OWN), len(OWN) + len(SHARED)), (len(OTHER), len(OTHER) + len(SHARED)),
    ]  # fmt: skip
    assert found["held_bytes"] == len(OWN) + len(OTHER) + len(SHARED)
    assert "60.0 kB in all" in run(daemon, "du").stdout


def test_gc_leaves_snapshots_and_what_may_yet_be_bound(daemon: Daemon) -> None:
    use(daemon, "one")
    lease = use(daemon, "two")
    stray = b"nobody's"
    assert daemon.call("PUT", f"/v1/blobs/{Digest.of(stray)}", stray).status == 201
    assert told(daemon, "gc", "--dry-run")["freed_bytes"] == 0  # it may be bound yet
    granted(daemon.call("DELETE", f"/v1/snapshots/{lease['revision']}"))
    done = told(daemon, "gc")
    assert (done["dry_run"], done["freed_bytes"]) == (False, 0)
    assert len(told(daemon, "ls")["snapshots"]) == 1


def test_verify_says_that_all_is_right_and_else_ends_with_4(daemon: Daemon) -> None:
    use(daemon, "one")
    assert told(daemon, "verify", "one") == {"checked": 2, "bytes": len(SHARED) + len(OWN), "wrong": [], "damaged": []}
    spoil(daemon, OWN)
    found = run(daemon, "verify", "one")
    assert found.exit_code == 4
    assert "1 wrong" in found.stdout
    assert "quarantine/" in found.stderr
    use(daemon, "one")
    assert told(daemon, "verify")["wrong"] == []


def spoil(daemon: Daemon, data: bytes) -> None:
    hex_ = Digest.of(data).hex
    path = daemon.store / "blobs" / "sha256" / hex_[:2] / hex_
    path.chmod(0o640)
    path.write_bytes(b"x" * len(data))
