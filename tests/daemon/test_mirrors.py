"""A daemon whose origin has mirrors: a CDN that works, and mirrors that lack, break, lie, or lead elsewhere."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests import objects
from tests.conftest import BUCKET
from tests.daemon.conftest import SEGMENT, MakeDaemon, Put
from tests.daemon.looking import granted, rows, tree_of
from tests.daemon_process import Daemon
from tests.faults import origin_cases as cases
from tests.faults.scripted_origin import ScriptedOrigin, Spoil
from tests.servers.nginx import Nginx
from tests.servers.ports import free_ports
from tests.servers.recorder import Recorder
from tests.servers.seaweedfs import SeaweedFS
from tests.waiting import wait_until

FETCH = {"segment_bytes": SEGMENT, "connections": 4, "attempts": 3, "idle_timeout_s": 1.0, "connect_timeout_s": 1.0}
TREE = objects.model("mirrors", unet=3 * SEGMENT + 1_000)
PUSHED = objects.published(TREE)
REVISION = objects.manifest_of(TREE).revision


def mirrored_by(make_daemon: MakeDaemon, origin: SeaweedFS, recorder: Recorder, *mirrors: str, name: str = "d") -> Daemon:
    it = {**origin.settings(BUCKET, endpoint_url=recorder.endpoint_url), "mirrors": mirrors}
    return make_daemon(name, origins={"it": it}, fetch=FETCH)


def asked(recorder: Recorder) -> list[str]:
    """What was asked of it: keys without the test's prefix."""
    return [one.key.partition("/")[2] for one in recorder.requests]


@pytest.fixture
def mirror(prefix: str) -> Iterator[ScriptedOrigin]:
    """Has all that was pushed, until it is told otherwise."""
    with ScriptedOrigin() as running:
        running.objects.update({f"{prefix}/{key}": data for key, data in PUSHED.items()})
        yield running


# ---- a CDN


@pytest.mark.needs("nginx")
def test_behind_a_warm_cdn_the_origin_is_asked_for_what_is_mutable_alone(
    make_daemon: MakeDaemon, seaweedfs: SeaweedFS, recorder: Recorder, put: Put, tmp_path: pathlib.Path
) -> None:
    source = put(PUSHED)
    with Recorder(seaweedfs.filer_url) as behind, Nginx(tmp_path, upstream=f"{behind.endpoint_url}/buckets/") as cdn:
        first = mirrored_by(make_daemon, seaweedfs, recorder, cdn.endpoint_url, name="first")
        assert tree_of(first, granted(first.acquire(source))) == TREE
        assert set(asked(recorder)) == {"hotshelf.json"}
        assert behind.requests
        for book in (recorder, behind):
            book.reset()
        second = mirrored_by(make_daemon, seaweedfs, recorder, cdn.endpoint_url, name="second")
        assert tree_of(second, granted(second.acquire(source))) == TREE
        assert asked(recorder) == ["hotshelf.json"]
        assert behind.requests == []
        recorder.reset()
        third = mirrored_by(make_daemon, seaweedfs, recorder, cdn.endpoint_url, name="third")
        assert tree_of(third, granted(third.acquire(f"{source}@{REVISION}"))) == TREE
        assert (recorder.requests, behind.requests) == ([], [])
        label = cdn.endpoint_url.removeprefix("http://")
        assert f'hotshelf_origin_bytes_total{{origin="{label}"}}' in second.get_http("/metrics").body


def test_a_new_revision_is_seen_though_the_mirror_keeps_the_old_one(
    make_daemon: MakeDaemon, seaweedfs: SeaweedFS, recorder: Recorder, put: Put, mirror: ScriptedOrigin
) -> None:
    source, later = put(PUSHED), objects.model("later")
    daemon = mirrored_by(make_daemon, seaweedfs, recorder, mirror.endpoint_url)
    daemon.restart(revalidate_s=0.1)
    assert tree_of(daemon, granted(daemon.acquire(source))) == TREE
    put(objects.published(later))
    revision = objects.manifest_of(later).revision
    wait_until(lambda: granted(daemon.acquire(source))["revision"] == revision, what="the new revision")
    assert tree_of(daemon, granted(daemon.acquire(source))) == later


@pytest.mark.parametrize("form", ["{url}", "{url}/", "{url}/any/{{key}}", "{url}/{{bucket}}/{{key}}"])
def test_a_mirror_may_keep_objects_below_the_bucket_s_name_or_where_it_says(
    make_daemon: MakeDaemon, seaweedfs: SeaweedFS, recorder: Recorder, put: Put, mirror: ScriptedOrigin, form: str
) -> None:
    source = put(PUSHED)
    daemon = mirrored_by(make_daemon, seaweedfs, recorder, form.format(url=mirror.endpoint_url))
    assert tree_of(daemon, granted(daemon.acquire(source))) == TREE
    assert asked(recorder) == ["hotshelf.json"]


# ---- what no mirror is asked for


def test_a_folder_without_a_manifest_and_a_single_object_use_no_mirror(
    make_daemon: MakeDaemon, seaweedfs: SeaweedFS, recorder: Recorder, put: Put, mirror: ScriptedOrigin, prefix: str
) -> None:
    source = put(TREE)
    mirror.objects.update({f"{prefix}/{key}": b"another" for key in TREE})
    daemon = mirrored_by(make_daemon, seaweedfs, recorder, mirror.endpoint_url)
    assert tree_of(daemon, granted(daemon.acquire(source))) == TREE
    name = "unet/diffusion_pytorch_model.safetensors"
    assert tree_of(daemon, granted(daemon.acquire(f"{source}/{name}"))) == {name.rpartition("/")[2]: TREE[name]}
    assert mirror.asked == []


def test_a_blob_asked_for_by_its_own_name_is_read_from_the_origin(
    make_daemon: MakeDaemon, seaweedfs: SeaweedFS, recorder: Recorder, put: Put, mirror: ScriptedOrigin, prefix: str
) -> None:
    source = put(PUSHED)
    recorder.amend(lambda head: head.set("ETag", None))  # as if nothing but its name told it apart
    blob = next(key for key, data in PUSHED.items() if data == TREE["unet/diffusion_pytorch_model.safetensors"])
    mirror.objects[f"{prefix}/{blob}"] = b"another"
    daemon = mirrored_by(make_daemon, seaweedfs, recorder, mirror.endpoint_url)
    assert tree_of(daemon, granted(daemon.acquire(f"{source}/{blob}"))) == {blob.rpartition("/")[2]: PUSHED[blob]}
    assert mirror.asked == []


# ---- mirrors that lie


def test_a_lying_mirror_changes_no_byte_and_costs_one_fetch_of_an_object(
    make_daemon: MakeDaemon, seaweedfs: SeaweedFS, recorder: Recorder, put: Put, mirror: ScriptedOrigin, prefix: str
) -> None:
    source = put(PUSHED)
    mirror.objects.update({key: cases.flip(data) for key, data in mirror.objects.items() if "/blobs/" in key})
    daemon = mirrored_by(make_daemon, seaweedfs, recorder, mirror.endpoint_url)
    assert tree_of(daemon, granted(daemon.acquire(source))) == TREE
    blobs = {key: data for key, data in PUSHED.items() if key.startswith("blobs/")}
    for key, data in blobs.items():
        if len(data) <= SEGMENT:  # a larger one's last ranges may be asked for twice, when one of them is slow
            assert sum(ask.key == f"{prefix}/{key}" for ask in mirror.asked) <= 1
            assert recorder.bytes_for(f"{prefix}/{key}") == len(data)
    failures = re.search(r'verify_failures_total\{reason="digest"\} (\S+)', daemon.get_http("/metrics").body)
    assert failures is not None
    assert 1 <= float(failures[1]) <= len(blobs)
    events = rows(daemon, "SELECT * FROM v_events WHERE kind = 'mirror_lied'")
    assert events
    assert {event["subject"] for event in events} == {mirror.endpoint_url.removeprefix("http://")}
    before = len(mirror.asked)
    again = objects.model("again")
    other = put(objects.published(again), "-b")
    assert tree_of(daemon, granted(daemon.acquire(other))) == again
    assert len(mirror.asked) == before  # it rests


def test_a_lying_manifest_is_read_again_from_the_origin(
    make_daemon: MakeDaemon, seaweedfs: SeaweedFS, recorder: Recorder, put: Put, mirror: ScriptedOrigin, prefix: str
) -> None:
    source = put(PUSHED)
    mirror.objects[f"{prefix}/manifests/{REVISION.hex}.json"] = objects.manifest_of(objects.model("evil")).canonical()
    daemon = mirrored_by(make_daemon, seaweedfs, recorder, mirror.endpoint_url)
    assert granted(daemon.acquire(source))["revision"] == REVISION


def test_bytes_of_a_liar_that_a_killed_daemon_left_do_not_come_through(
    make_daemon: MakeDaemon, seaweedfs: SeaweedFS, recorder: Recorder, put: Put, mirror: ScriptedOrigin, prefix: str
) -> None:
    source, unet = put(PUSHED), TREE["unet/diffusion_pytorch_model.safetensors"]
    blob = f"{prefix}/blobs/sha256/{objects.Digest.of(unet).hex}"
    mirror.objects[blob] = bytes([unet[0] ^ 1]) + unet[1:]
    mirror.misdeed(cases.ends("stall", 0), prefix=blob, when=lambda ask: ask.range is not None and ask.range[0] > SEGMENT)
    daemon = mirrored_by(make_daemon, seaweedfs, recorder, mirror.endpoint_url)
    daemon.restart(fetch={**FETCH, "idle_timeout_s": 60})
    with ThreadPoolExecutor(1) as aside:
        waiting = aside.submit(daemon.acquire, source)
        wait_until(lambda: rows(daemon, "SELECT 1 FROM v_transfers WHERE bytes_done > 0"), what="some bytes of the liar")
        daemon.kill9()
        assert waiting.exception() is not None
    mirror.heal()
    daemon.restart()
    assert tree_of(daemon, granted(daemon.acquire(source))) == TREE


# ---- mirrors that are broken

BROKEN: dict[str, Spoil] = {
    "forbidden": cases.refuse(403, "AccessDenied"),
    "nothing there": cases.refuse(404, "NoSuchKey"),
    "broken": cases.refuse(500, "InternalError"),
    "too busy": cases.refuse(503, "SlowDown", **{"Retry-After": "30"}),
    "another host": cases.refuse(302, Location="http://127.0.0.1:9/elsewhere"),
    "a host of the cloud": cases.refuse(302, Location="http://169.254.169.254/latest/meta-data"),
    "a page for people": cases.body(lambda _: b"<html>welcome</html>", Content_Type="text/html"),
    "no ETag": cases.header("ETag", None),
    "another ETag": cases.header("ETag", '"other"'),
    "no Range": cases.whole,
    "another range": cases.shifted,
    "of another size": cases.longer_total,
    "shorter": cases.body(lambda data: data[:-7]),
    "no length": cases.NO_LENGTH,
    "compressed": cases.gzipped,
    "cut off": cases.ends("rst", 1_000),
    "ended early": cases.ends("fin", 1_000),
    "silent": cases.ends("stall", 0),
    "gone quiet": cases.ends("stall", 1_000),
    "no HTTP at all": cases.raw(b"SSH-2.0-OpenSSH_9.2\r\n"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_a_mirror_does_not_give_as_it_should_comes_from_the_origin(
    make_daemon: MakeDaemon, seaweedfs: SeaweedFS, recorder: Recorder, put: Put, mirror: ScriptedOrigin, name: str
) -> None:
    source = put(PUSHED)
    mirror.misdeed(BROKEN[name])
    daemon = mirrored_by(make_daemon, seaweedfs, recorder, mirror.endpoint_url)
    assert tree_of(daemon, granted(daemon.acquire(source))) == TREE
    assert mirror.asked


def test_mirrors_that_are_not_there_or_link_local_are_passed_over(
    make_daemon: MakeDaemon, seaweedfs: SeaweedFS, recorder: Recorder, put: Put, mirror: ScriptedOrigin
) -> None:
    source, [nobody] = put(PUSHED), free_ports(1)
    mirrors = (f"http://127.0.0.1:{nobody}", "http://169.254.169.254", "https://does-not-resolve.invalid", mirror.endpoint_url)
    daemon = mirrored_by(make_daemon, seaweedfs, recorder, *mirrors)
    assert tree_of(daemon, granted(daemon.acquire(source))) == TREE
    assert asked(recorder) == ["hotshelf.json"]


def test_without_the_origin_a_mirror_serves_what_is_pinned(
    make_daemon: MakeDaemon, seaweedfs: SeaweedFS, recorder: Recorder, put: Put, mirror: ScriptedOrigin
) -> None:
    source = put(PUSHED)
    daemon = mirrored_by(make_daemon, seaweedfs, recorder, mirror.endpoint_url)
    with recorder.down():
        assert tree_of(daemon, granted(daemon.acquire(f"{source}@{REVISION}"))) == TREE


def test_a_broken_mirror_that_went_quiet_is_waited_for_once(
    make_daemon: MakeDaemon, seaweedfs: SeaweedFS, recorder: Recorder, put: Put, mirror: ScriptedOrigin
) -> None:
    source = put(PUSHED)
    mirror.misdeed(cases.ends("stall", 0))
    daemon = mirrored_by(make_daemon, seaweedfs, recorder, mirror.endpoint_url)
    assert tree_of(daemon, granted(daemon.acquire(source))) == TREE
    assert len(mirror.asked) == 1  # the manifest: all else goes past it
