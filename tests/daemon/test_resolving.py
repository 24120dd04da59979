"""`POST /v1/resolve`: what sources stand for, with nothing fetched of them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests import objects
from tests.daemon.looking import assert_nothing_visible, blobs_on_disk, granted, refused
from tests.daemon_process import Daemon
from tests.servers.seaweedfs import SeaweedFS


@pytest.fixture
def shelf(make_daemon: Callable[..., Daemon], seaweedfs: SeaweedFS, bucket: str) -> Daemon:
    return make_daemon(origins={"weed": seaweedfs.settings(bucket)})


def test_a_pushed_source_is_known_before_a_byte_is_read_and_a_plain_one_when_it_is_held(
    shelf: Daemon, seaweedfs: SeaweedFS, bucket: str, prefix: str
) -> None:
    tree = objects.model("resolved")
    manifest = objects.manifest_of(tree)
    objects.put(seaweedfs, bucket, f"{prefix}/pushed", objects.published(tree))
    objects.put(seaweedfs, bucket, f"{prefix}/plain", tree)
    sources = [f"s3://{bucket}/{prefix}/{name}" for name in ("pushed", "plain")]

    first, second = granted(shelf.call("POST", "/v1/resolve", {"sources": sources}))["resolved"]
    assert (first["source"], first["revision"], first["held"], first["kind"]) == (sources[0], manifest.revision, False, "tree")
    assert {one["path"]: one["digest"] for one in first["files"]} == {p: e.digest for p, e in manifest.items()}
    assert (second["revision"], second["files"], second["held"]) == (None, None, False)
    assert blobs_on_disk(shelf) == {}
    assert_nothing_visible(shelf)

    for source in sources:
        granted(shelf.acquire(source))
    answers = granted(shelf.call("POST", "/v1/resolve", {"sources": sources}))["resolved"]
    assert [(one["revision"], one["held"]) for one in answers] == [(manifest.revision, True)] * 2


def test_what_cannot_be_acquired_cannot_be_resolved(shelf: Daemon, bucket: str, prefix: str) -> None:
    refused(shelf.call("POST", "/v1/resolve", {"source": f"s3://{bucket}/{prefix}/nothing"}), "not_found")
    refused(shelf.call("POST", "/v1/resolve", {"source": "file:///etc"}), "access_denied")
    refused(shelf.call("POST", "/v1/resolve", {"source": f"pipeline:{'0' * 64}"}), "not_found")
    refused(shelf.call("POST", "/v1/resolve", {}), "invalid_request")
