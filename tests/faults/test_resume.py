"""A daemon killed in the middle of a download goes on where it was, and its index and its disk agree."""

from __future__ import annotations

import contextlib
import http.client
import json
import sqlite3
import threading
from collections.abc import Callable

import pytest

from hotshelf_shared.digest import Digest
from tests import objects
from tests.daemon_process import Daemon
from tests.objects import MIB
from tests.servers.recorder import Recorder
from tests.servers.seaweedfs import SeaweedFS
from tests.waiting import wait_until

SEGMENT_BYTES, CONNECTIONS = 4 * MIB, 4


@pytest.mark.parametrize("published", [False, True], ids=["listed", "pushed"])
def test_a_killed_download_refetches_no_more_than_the_segments_in_flight(
    make_daemon: Callable[..., Daemon], recorder: Recorder, seaweedfs: SeaweedFS, bucket: str, prefix: str, published: bool
) -> None:
    tree = objects.model(prefix, unet=120 * MIB, text_encoder=60 * MIB, vae=40 * MIB)
    if published:
        publish(seaweedfs, bucket, prefix, tree)
    else:
        objects.put(seaweedfs, bucket, prefix, tree)
    size = objects.size_of(tree)
    origins = {"weed": seaweedfs.settings(bucket, endpoint_url=recorder.endpoint_url)}
    daemon = make_daemon(origins=origins, fetch={"segment_bytes": SEGMENT_BYTES, "connections": CONNECTIONS})
    recorder.limit_rate(80e6)
    waiting = threading.Thread(target=lambda: broken_off(daemon, f"s3://{bucket}/{prefix}"))
    waiting.start()
    wait_until(lambda: recorder.bytes_for(prefix) >= size / 2, every_s=0.002)
    daemon.kill9()
    waiting.join()
    recorder.limit_rate(None)
    daemon.start()
    answer = daemon.acquire(f"s3://{bucket}/{prefix}")
    assert answer.status == 200, answer.body
    assert answer.body["revision"] == objects.manifest_of(tree).revision
    assert objects.read(daemon.store / answer.body["path"]) == tree
    small = sum(len(data) for data in tree.values() if len(data) <= SEGMENT_BYTES)
    assert recorder.bytes_for(prefix) <= size + CONNECTIONS * SEGMENT_BYTES + small + 64 * 1024  # what the kernels buffered
    assert blobs_on_disk(daemon) == blobs_in_the_index(daemon)
    assert list((daemon.store / "ingest").iterdir()) == []


def publish(seaweedfs: SeaweedFS, bucket: str, prefix: str, tree: objects.Tree) -> None:
    """As `hotshelf push` does, without its process."""
    manifest = objects.manifest_of(tree)
    with seaweedfs.client() as client:
        for path, data in tree.items():
            client.put_object(Bucket=bucket, Key=f"{prefix}/blobs/sha256/{manifest[path].digest.hex}", Body=data)
        named = f"manifests/{manifest.revision.hex}.json"
        client.put_object(Bucket=bucket, Key=f"{prefix}/{named}", Body=manifest.canonical())
        pointer = {"version": 1, "revision": manifest.revision, "manifest": named}
        client.put_object(Bucket=bucket, Key=f"{prefix}/hotshelf.json", Body=json.dumps(pointer).encode())


def broken_off(daemon: Daemon, source: str) -> None:
    with contextlib.suppress(OSError, http.client.HTTPException):  # the daemon is killed under it: that is the point
        daemon.acquire(source)


def blobs_on_disk(daemon: Daemon) -> dict[str, int]:
    files = list((daemon.store / "blobs/sha256").glob("*/*"))
    assert all(Digest.of(path.read_bytes()).hex == path.name for path in files)
    return {f"sha256:{path.name}": path.stat().st_size for path in files}


def blobs_in_the_index(daemon: Daemon) -> dict[str, int]:
    with sqlite3.connect(f"file:{daemon.store}/index/index.db?mode=ro", uri=True) as reader:
        found = dict(reader.execute("SELECT digest, size FROM v_blobs WHERE state = 'ready'"))
    reader.close()
    return found
