"""`Client`: the verbs of /v1 for a worker.

A client names itself to the daemon and keeps its leases alive (`keeper`); every verb raises `HotshelfError`s only. It
holds no connection but the keeper's, may be used by any number of threads, and survives a fork.
"""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Iterable, Mapping
from typing import Any, Self, overload
from urllib.parse import quote

from hotshelf import embedded, handing
from hotshelf.acquisition import Deadline, Globs, OnProgress, Wanted, compose, ready
from hotshelf.granting import Granting
from hotshelf.keeper import Keeper
from hotshelf.lease import Lease, Leases
from hotshelf.transport import Transport, ask
from hotshelf.unix import UnixTransport  # not on first use: a fork amid that import would hang the child on its lock
from hotshelf_shared.errors import HotshelfError
from hotshelf_shared.manifest import Manifest
from hotshelf_shared.recipe import Recipe

DEFAULT_SOCKET = "/run/hotshelf/hotshelf.sock"
DEFAULT_STORE = "/shelf"
LOOK_TIMEOUT_S = 30.0
VERIFY_TIMEOUT_S = 86_400.0


class Client:
    """Speaks to the daemon on `socket` (else ``HOTSHELF_SOCKET``); finds files below `store`.

    `store` is where the shelf is mounted here (else ``HOTSHELF_STORE``, ``PIPELINE_STORE``, else the daemon's own path
    when that exists here). `autostart` (else ``HOTSHELF_AUTOSTART``) starts a daemon when none answers.
    The environment is read when the client is first used.
    """

    def __init__(
        self,
        socket: str | os.PathLike[str] | None = None,
        store: str | os.PathLike[str] | None = None,
        autostart: bool | None = None,
        *,
        transport: Transport | None = None,
    ) -> None:
        self._socket, self._store, self._autostart = socket, store, autostart
        self._transport, self._keepers = transport, dict[str, Keeper]()

    @property
    def transport(self) -> Transport:
        """The way to the daemon; in embedded mode, one that starts it."""
        if self._transport is None:
            socket = self._socket or os.environ.get("HOTSHELF_SOCKET")
            if not embedded.wanted(self._autostart):
                self._transport = UnixTransport(os.fspath(socket or DEFAULT_SOCKET))
            else:
                store = os.fspath(self._mount or DEFAULT_STORE)
                if socket is None:
                    socket = DEFAULT_SOCKET if os.path.exists(DEFAULT_SOCKET) else embedded.default_socket(store)
                self._transport = embedded.Starting(UnixTransport(os.fspath(socket)), store)
        return self._transport

    @property
    def _mount(self) -> str | os.PathLike[str] | None:
        """Where the store is, as far as the caller and the environment say."""
        return self._store or os.environ.get("HOTSHELF_STORE") or os.environ.get("PIPELINE_STORE")

    @property
    def keeper(self) -> Keeper:
        """The one that renews this client's leases. `setdefault` makes it one for all threads, without a lock to fork."""
        return self._keepers.get("") or self._keepers.setdefault("", Keeper(self.transport))

    def over(self, transport: Transport) -> Self:
        """The same client, with the same keeper, whose requests take another way."""
        _ = self.keeper
        other = copy.copy(self)
        other._transport = transport
        return other

    # ---- acquire

    @overload
    def acquire(  # type: ignore[overload-overlap]  # a str is an Iterable[str]; this overload goes first
        self,
        source: Wanted,
        *,
        revision: str | None = None,
        allow_patterns: Globs = None,
        ignore_patterns: Globs = None,
        timeout: float | None = 600,
        on_progress: OnProgress | None = None,
        hold_s: float | None = None,
        detached: bool = False,
        warm: bool = False,
    ) -> Lease: ...
    @overload
    def acquire(
        self,
        source: Iterable[Wanted],
        *,
        allow_patterns: Globs = None,
        ignore_patterns: Globs = None,
        timeout: float | None = 600,
        on_progress: OnProgress | None = None,
        hold_s: float | None = None,
        detached: bool = False,
        warm: bool = False,
    ) -> Leases: ...
    def acquire(
        self,
        source: Wanted | Iterable[Wanted],
        *,
        revision: str | None = None,
        allow_patterns: Globs = None,
        ignore_patterns: Globs = None,
        timeout: float | None = 600,
        on_progress: OnProgress | None = None,
        hold_s: float | None = None,
        detached: bool = False,
        warm: bool = False,
    ) -> Lease | Leases:
        """Waits until the files of `source` are on the shelf, verified, and holds them there.

        Several sources are granted all or nothing. `timeout` is in seconds, for everything, a daemon that is not up yet
        included. A lease is renewed while this process lives; one that is `detached`, or has `hold_s` (seconds), is not:
        it outlives the process for its time. `warm` reads the files into the page cache, as far as memory goes and until
        `timeout`, which ends that but not the lease; `lease.warmed` says how far it came.
        """
        granting = Granting(self.transport, self._mount, Deadline.after(timeout), on_progress)
        body = compose(source, revision=revision, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns, hold_s=hold_s)
        is_kept = not detached and hold_s is None
        if warm:
            leases = granting.warm(body, self.keeper, detached=not is_kept)
        else:
            leases = granting.grant(body, self.keeper if is_kept else None)
        return leases if "sources" in body else leases[0]

    # ---- looks

    def resolve(self, sources: Iterable[Wanted], *, timeout: float | None = 60) -> list[dict[str, Any]]:
        """What sources stand for, with nothing fetched: ``{"source", "kind", "held", "revision", "files"}`` each.

        `revision` and `files` are None where digests are learnt by reading only: for a folder that was not pushed.
        """
        deadline = Deadline.after(timeout)
        body = compose(list(sources)) | {"timeout_s": deadline.timeout_s}
        found = self._ask("POST", "/v1/resolve", body, timeout_s=deadline.left_s + LOOK_TIMEOUT_S).get("resolved")
        if not isinstance(found, list):
            raise HotshelfError("the answer to POST /v1/resolve has no resolved")
        return found

    def status(self) -> dict[str, Any]:
        """What the daemon is and holds."""
        return self._ask("GET", "/v1/status")

    def health(self) -> dict[str, Any]:
        """``{"status": "ok" | "degraded", "checks": […]}``"""
        return self._ask("GET", "/v1/health")

    def snapshots(self) -> list[dict[str, Any]]:
        """Every snapshot on the shelf."""
        return self._list("/v1/snapshots", "snapshots")

    def snapshot(self, target: str) -> dict[str, Any]:
        """One snapshot, by revision, source or name, with its manifest."""
        return self._ask("GET", f"/v1/snapshots/{_quoted(target)}")

    def why(self, source: str) -> dict[str, Any]:
        """Why a source or name is here, or is not: ``{"source", "summary", "refs", "leases", "pins", "requests", …}``."""
        return self._ask("GET", f"/v1/why?source={_quoted(source)}")

    def pins(self) -> list[dict[str, Any]]:
        return self._list("/v1/pins", "pins")

    def transfers(self) -> list[dict[str, Any]]:
        return self._list("/v1/transfers", "transfers")

    # ---- what a worker built

    def has_blob(self, digest: str) -> bool:
        """Whether the daemon holds these bytes; if so they stay for some minutes, to be bound."""
        return handing.has_blob(self.transport, digest)

    def put_blob(self, digest: str, path: str | os.PathLike[str], *, timeout: float = 600) -> bool:
        """Hands a file in. False when it was held already. Raises IntegrityError when the file is not `digest`."""
        return handing.put_blob(self.transport, digest, path, timeout=timeout)

    def put_pipeline(
        self,
        key: str,
        recipe: Recipe | Mapping[str, Any],
        manifest: Manifest | Mapping[str, Any],
        build: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Binds a tree of blobs that are held to the key of its recipe; what `pipeline` tells of it.

        Raises MissingBlobs (``.details["missing"]``), Conflict when another tree was first, UnsafeContent.
        """
        return handing.put_pipeline(self.transport, key, recipe, manifest, build)

    def pipeline(self, key: str) -> dict[str, Any]:
        """A built pipeline that this process may lease as ``pipeline:KEY``. Raises NotFound."""
        return handing.pipeline(self.transport, key)

    def put_bundle(
        self, environment_key: str, graph_key: str, archive: str | os.PathLike[str], *, timeout: float = 600
    ) -> dict[str, Any]:
        """Hands in an archive of a compile cache (`archive.pack`) and binds it; what `bundle` tells. Raises Conflict."""
        return handing.put_bundle(self.transport, environment_key, graph_key, archive, timeout=timeout)

    def bundle(self, environment_key: str, graph_key: str) -> dict[str, Any]:
        """A bundle that this process may lease as ``bundle:ENVIRONMENT/GRAPH``. Raises NotFound."""
        return handing.bundle(self.transport, environment_key, graph_key)

    def bundles(self, environment_key: str | None = None) -> list[dict[str, Any]]:
        """Those on the shelf that this process may lease, of one environment or of all; by name, without their paths."""
        return handing.bundles(self.transport, environment_key)

    # ---- the operator's verbs

    def pin(self, target: str) -> dict[str, Any]:
        """Holds `target` until unpinned: a source or name is followed to new revisions, a revision is not."""
        return self._ask("PUT", f"/v1/pins/{_quoted(target)}")

    def unpin(self, target: str) -> dict[str, Any]:
        return self._ask("DELETE", f"/v1/pins/{_quoted(target)}")

    def evict(self, target: str) -> dict[str, Any]:
        """Takes a snapshot, named by revision or source, off the shelf. Raises InUse while it is leased or pinned."""
        return self._ask("DELETE", f"/v1/snapshots/{_quoted(target)}")

    def refresh(self, source: str, *, timeout: float | None = 600, on_progress: OnProgress | None = None) -> dict[str, Any]:
        """Asks the origin of a source or name now, fetches what has changed, and takes it; ends a rollback.

        ``{"source", "revision", "previous", "changed", "unfrozen", "pinned"}``. When it fails all stays as it was. `timeout`
        in seconds.
        """
        deadline = Deadline.after(timeout)
        event = ready(self.transport, "/v1/refresh", {"source": source}, deadline=deadline, on_progress=on_progress)
        if not isinstance(found := event.get("refreshed"), dict):
            raise HotshelfError("the answer to POST /v1/refresh has no refreshed")
        return found

    def rollback(self, source: str, *, dry_run: bool = False) -> dict[str, Any]:
        """Returns a source or name to its previous revision, where it stays until `refresh`; once more, and it goes forth.

        ``{"source", "revision", "previous", "dry_run", "refs"}``. Leases stay what they are. Raises NotFound when nothing from
        before is held.
        """
        return self._ask("POST", "/v1/rollback", {"source": source, "dry_run": dry_run})

    def verify(self, target: str | None = None) -> dict[str, Any]:
        """Reads and hashes a snapshot, or everything: ``{"checked", "bytes", "damaged": […]}``."""
        body = {}
        if target is not None:
            body["revision"] = target if target.startswith("sha256:") else self.snapshot(target)["revision"]
        return self._ask("POST", "/v1/verify", body, timeout_s=VERIFY_TIMEOUT_S)

    def collect(self, *, dry_run: bool = False) -> dict[str, Any]:
        """Removes what no snapshot holds: ``{"dry_run", "blobs": […], "ingests": […], "freed_bytes"}``."""
        return self._ask("POST", "/v1/collect", {"dry_run": dry_run}, timeout_s=VERIFY_TIMEOUT_S)

    def _ask(self, method: str, path: str, body: object = None, *, timeout_s: float = LOOK_TIMEOUT_S) -> dict[str, Any]:
        answer = ask(self.transport, method, path, body, deadline=time.monotonic() + timeout_s)
        if answer is not None and not isinstance(answer, dict):
            raise HotshelfError(f"the answer to {method} {path} is no JSON object")
        return answer or {}

    def _list(self, path: str, name: str) -> list[dict[str, Any]]:
        found = self._ask("GET", path).get(name)
        if not isinstance(found, list):
            raise HotshelfError(f"the answer to GET {path} has no {name}")
        return found


def _quoted(target: str) -> str:
    return quote(target, safe="")


#: What the module functions of `hotshelf` speak through.
default = Client()
acquire, status, snapshots = default.acquire, default.status, default.snapshots
pin, unpin, evict, verify = default.pin, default.unpin, default.evict, default.verify
refresh, rollback = default.refresh, default.rollback
