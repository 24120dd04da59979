"""`hotshelf doctor`: examines a configuration and what it names, and says how to mend what is wrong.

It only looks, works beside a running daemon and without one, and as a worker as well as as the daemon's user. No check
raises for what it finds, nor keeps another from being made.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import stat
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from itertools import islice
from typing import Any
from urllib.parse import urlsplit

from hotshelf_daemon.acquire.names import Names
from hotshelf_daemon.acquire.resolve import find
from hotshelf_daemon.config import Settings, share_of
from hotshelf_daemon.doctor import mirrors
from hotshelf_daemon.doctor.finding import Finding, Status
from hotshelf_daemon.origin import Directory, gcs, s3
from hotshelf_daemon.origin.s3_errors import translated
from hotshelf_daemon.provenance import Keyring, PublicKey
from hotshelf_shared.errors import HotshelfError
from hotshelf_shared.mounts import file_system_of, is_network
from hotshelf_shared.source import Source
from hotshelf_shared.wire import Wish

PATIENCE_S = 5.0
#: S3 refuses requests signed 15 minutes off; this far off there is something to mend.
SKEW_S = 60.0
LINKS_LOOKED_AT = 2_000
_RENAMED_INTO = ("blobs", "snapshots", "manifests", "ingest", "trash")


def examine(settings: Settings) -> list[Finding]:
    """Every check in turn; errors come first. Takes seconds when an origin does not answer."""
    status, found = _ask(settings.socket)
    for check in (_store, _index, _room, _layout, _origins, _caches, mirrors.check, _signatures):
        found += check(settings, status)
    return sorted(found, key=lambda finding: finding.level)


def _ask(path: str) -> tuple[Status, list[Finding]]:
    """What the daemon says of itself, if one can be reached."""
    connection = http.client.HTTPConnection("hotshelf", timeout=PATIENCE_S)
    connection.sock = socket.socket(socket.AF_UNIX)
    with contextlib.closing(connection):
        try:
            connection.sock.settimeout(PATIENCE_S)
            connection.sock.connect(path)
            status = _get(connection, "/v1/status")
            health = _get(connection, "/v1/health")
        except PermissionError:
            return None, [Finding("error", "socket", f"this user may not connect to {path}{_owner(path)}", _JOIN)]
        except (OSError, http.client.HTTPException, ValueError) as error:
            message = f"no daemon answers on {path}: {error}"
            return None, [Finding("error", "socket", message, "Start hotshelfd, or set HOTSHELF_SOCKET to where it listens.")]
    if "code" in status:
        return None, [Finding("error", "socket", str(status.get("detail")), str(status.get("hint")))]
    wrong = [one["check"] for one in health.get("checks", ()) if not one["ok"]]
    return status, [Finding("error", name, f"the daemon reports {name} as failed", "See its log.") for name in wrong]


_JOIN = "Run with the socket's group as a supplementary group (fsGroup in a pod, --group-add in a container)."


def _get(connection: http.client.HTTPConnection, path: str) -> dict[str, Any]:
    connection.request("GET", path)
    body = json.loads(connection.getresponse().read())
    return body if isinstance(body, dict) else {}


def _owner(path: str) -> str:
    try:
        seen = os.stat(path)
    except OSError:
        return ""
    return f" (mode {stat.S_IMODE(seen.st_mode):04o}, uid {seen.st_uid}, gid {seen.st_gid})"


def _store(settings: Settings, status: Status) -> Iterator[Finding]:
    store = settings.store
    try:
        seen = os.stat(store)
    except OSError as error:
        yield Finding("error", "store", f"{store}: {error.strerror}", "Mount the shelf there, or set `store` (PIPELINE_STORE).")
        return
    if not os.access(store, os.R_OK | os.X_OK):
        yield Finding("error", "store", f"this user may not read {store}{_owner(store)}", "Join the group of the store.")
    if status is None and not os.access(store, os.W_OK):
        yield Finding("warning", "store", f"this user may not write {store}", "hotshelfd must be able to; workers need not.")
    if seen.st_mode & stat.S_IWOTH:
        yield Finding("error", "store", f"{store} is writable by everyone", f"chmod o-w {store}")
    if file_system_of(store) == "overlay":
        fix = "Mount a volume there: a container's own layer is slow and dies with it."
        yield Finding("warning", "store", f"{store} lies on overlay", fix)


def _index(settings: Settings, _status: Status) -> Iterator[Finding]:
    kind = file_system_of(os.path.dirname(settings.index_path))
    if is_network(kind):
        message = f"the index {settings.index_path} lies on {kind}, where SQLite's WAL is not safe"
        yield Finding("error", "index", message, "Set index.path to a file on a local disk.")


def _room(settings: Settings, status: Status) -> Iterator[Finding]:
    try:
        room = os.statvfs(settings.store)
    except OSError:
        return
    total, free = room.f_blocks * room.f_frsize, room.f_bavail * room.f_frsize
    held = sum(status["held_bytes"].values()) if status else 0
    budget = share_of(settings.budget, total)
    if isinstance(settings.budget, int) and budget > total:
        message = f"budget is {budget:,} bytes and the file system of {settings.store} has {total:,}"
        yield Finding("error", "room", message, "Lower `budget`.")
    elif isinstance(settings.budget, int) and budget - held > free:
        message = f"budget promises {budget - held:,} more bytes and {free:,} are free: others use the file system too"
        yield Finding("warning", "room", message, "Lower `budget`, or free the disk.")
    elif free < total // 100:
        yield Finding("warning", "room", f"{free:,} of {total:,} bytes are free", "Free the disk, or evict something.")
    if room.f_files and room.f_favail < 1000:
        yield Finding("error", "room", f"{room.f_favail} inodes are free at {settings.store}", "Remove small files there.")


def _layout(settings: Settings, _status: Status) -> Iterator[Finding]:
    devices = {}
    for name in _RENAMED_INTO:
        with contextlib.suppress(OSError):
            devices[name] = os.stat(os.path.join(settings.store, name)).st_dev
    if len(set(devices.values())) > 1:
        message = f"{', '.join(devices)} in {settings.store} lie on different file systems"
        yield Finding("error", "layout", message, "Mount one volume at `store`, none below it.")
    for link in islice(_dangling(os.path.join(settings.store, "snapshots")), 1):
        yield Finding("error", "layout", f"{link} points at nothing", "hotshelf verify")


def _dangling(snapshots: str) -> Iterator[str]:
    """Links to blobs that are gone, or are not mounted here, among the first so many."""
    links = (os.path.join(at, name) for at, _, names in os.walk(snapshots) for name in names)
    return (link for link in islice(links, LINKS_LOOKED_AT) if os.path.islink(link) and not os.path.exists(link))


def _origins(settings: Settings, _status: Status) -> Iterator[Finding]:
    named = (Source.parse(model.source) for model in settings.names.values())
    buckets = {bucket for origin in settings.origins.values() for bucket in origin.buckets}
    buckets |= {source.authority for source in named if source.kind == "s3"}
    if settings.default_bucket:
        buckets.add(settings.default_bucket)
    for bucket in sorted(buckets):
        yield from _bucket(bucket, settings)
    for name, model in settings.names.items():
        if (kind := Source.parse(model.source).kind) in ("https", "hf"):
            yield from _model(name, settings)
        elif kind == "gs":
            yield from _cloud(name, settings)


def _bucket(bucket: str, settings: Settings) -> Iterator[Finding]:
    """Lists one key, which is what an acquire begins with: endpoint, credentials, bucket and clock at once."""
    label, origin = s3.bucket(settings, bucket)
    check = f"origin {label}"
    principal = origin.access_key_id or ("nobody (unsigned)" if origin.unsigned else "the AWS chain's key")
    try:
        with translated(label, principal, f"s3://{bucket}"):
            answer = s3.client_for(origin, settings).list_objects_v2(Bucket=bucket, MaxKeys=1)
    except HotshelfError as error:
        yield Finding("error", check, error.message, error.hint)
        return
    skew_s = _skew_s(answer["ResponseMetadata"].get("HTTPHeaders", {}).get("date"))
    if abs(skew_s) > SKEW_S:
        message = f"this clock is {abs(skew_s):.0f} s {'ahead of' if skew_s > 0 else 'behind'} {label}'s"
        yield Finding("warning", check, message, "Set the clock: S3 refuses requests 15 minutes off.")


def _model(name: str, settings: Settings) -> Iterator[Finding]:
    """Does what an acquire begins with: what cannot be asked for one key is asked for this model."""
    want = Names(settings).want(Wish(Source.parse(name)))
    host = want.source.authority if want.source.kind == "https" else urlsplit(settings.hf.endpoint).netloc
    try:
        find(Directory(settings.hasty(), lambda origin: origin).origin_of(want.source), want)
    except HotshelfError as error:
        yield Finding("error", f"origin {host}", f"{name}: {error.message}", error.hint)


def _cloud(name: str, settings: Settings) -> Iterator[Finding]:
    """One object, or one page of a listing: libraries, credentials, endpoint and bucket at once."""
    source = Source.parse(settings.names[name].source)
    try:
        origin = gcs.origin_of(source.authority, settings.hasty())
        if not source.path or origin.head(source.path) is None:
            next(iter(origin.list(source.path)), None)
    except HotshelfError as error:
        yield Finding("error", "origin gcs", f"{name}: {error.message}", error.hint)


def _caches(settings: Settings, _status: Status) -> Iterator[Finding]:
    for path in settings.hf.caches:
        try:
            os.scandir(path).close()
        except OSError as error:
            fix = "Mount it there, readable for this user, or take it out of hf.caches (HF_HUB_CACHE, HF_HOME)."
            yield Finding("warning", "hf.caches", f"{path}: {error.strerror}: nothing is taken from there", fix)


def _skew_s(date: str | None) -> float:
    try:
        return time.time() - parsedate_to_datetime(date or "").timestamp()
    except (TypeError, ValueError):
        return 0.0


def _signatures(settings: Settings, _status: Status) -> Iterator[Finding]:
    """Each key by itself, so that all that cannot be used are named; then what the daemon itself refuses at start."""
    broken = False
    for name, origin in settings.origins.items():
        check = f"signatures {name}"
        for path in origin.keys:
            try:
                PublicKey.load(path, f"origins.{name}.keys")
            except HotshelfError as error:
                broken = True
                yield Finding("error", check, error.message, error.hint)
        if origin.keys and origin.verify == "off":
            message = f"origins.{name} has keys, and verify is off: whatever lies there is served, signed or not"
            yield Finding("warning", check, message, f"Set origins.{name}.verify to required.")
    try:
        Keyring.of(settings)
    except HotshelfError as error:
        if not broken:
            yield Finding("error", "signatures", error.message, error.hint)
