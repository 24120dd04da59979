"""From a source to its origin: the one place that knows which kinds there are and which credentials go where."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from hotshelf_daemon import logs
from hotshelf_daemon.config import OriginSettings, Settings, reread
from hotshelf_daemon.origin import gcs, hf, https, s3
from hotshelf_daemon.origin.file import FileOrigin, root_for
from hotshelf_daemon.origin.mirrored import Mirrored, ways_to
from hotshelf_daemon.origin.port import Origin
from hotshelf_shared.errors import InvalidRequest, NotFound
from hotshelf_shared.source import KEYED, Source

Wrap = Callable[[Origin], Origin]


class Directory:
    """Origins by source, made once and kept: a client's connections are worth keeping."""

    def __init__(self, settings: Settings, wrap: Wrap, wrap_mirror: Wrap | None = None) -> None:
        """Without a wrap for mirrors none is asked."""
        self._settings = settings
        self._wrap = wrap
        self._wrap_mirror = wrap_mirror
        self._made: dict[tuple[str, str], Origin] = {}
        self._lock = threading.Lock()

    def origin_of(self, source: Source) -> Origin:
        """Raises AccessDenied (a file outside the roots) or InvalidRequest (a kind without an origin)."""
        if source.kind == "s3":
            return self._kept(("s3", source.authority), lambda: self._bucket(source.authority))
        if source.kind == "file":
            root = root_for(f"/{source.path}", self._settings.roots)
            return self._kept(("file", root), lambda: self._wrap(FileOrigin(root)))
        if source.kind == "https":
            host = source.authority
            return self._kept(("https", host), lambda: self._wrap(https.origin_of(host, self._settings)))
        if source.kind == "gs":
            return self._kept(("gs", source.authority), lambda: self._wrap(gcs.origin_of(source.authority, self._settings)))
        if source.kind == "hf":
            hf.check_allowed(source, self._settings.hf)
            return self._kept(("hf", ""), lambda: self._wrap(hf.origin_of(self._settings)))
        if source.kind in KEYED:
            if (prefix := self._settings.publish.of(source.kind)) is None:
                raise NotFound(f"blobs of {source} are not held, and nothing is published", hint="Build it again.")
            return self.origin_of(prefix)
        raise InvalidRequest(
            f"there is no origin for {source.kind}: sources in this version",
            hint="Use s3://, gs://, hf://, https:// or file:// sources.",
        )

    def warm(self) -> None:
        """Does now what the first client of all would take half a second for, with somebody waiting."""
        s3.client_for(next(iter(self._settings.origins.values()), OriginSettings(unsigned=True)), self._settings)
        if any(Source.parse(model.source).kind == "hf" for model in self._settings.names.values()):
            hf.warm()

    def _bucket(self, name: str) -> Origin:
        label, origin = s3.bucket(self._settings, name)
        files = (origin.access_key_id_file, origin.secret_access_key_file, origin.session_token_file, origin.credentials_file)

        def renew() -> Any:
            fresh = reread(origin)
            logs.keep_out(fresh.secrets())
            return s3.client_for(fresh, self._settings)

        made = self._wrap(s3.S3Origin(s3.client_for(origin, self._settings), name, label, renew if any(files) else None))
        return self._mirrored(made, origin, name)

    def _mirrored(self, made: Origin, origin: OriginSettings, bucket: str) -> Origin:
        if (wrap := self._wrap_mirror) is None or not origin.mirrors:
            return made
        return Mirrored(made, [[*map(wrap, ways_to(one, bucket, origin, self._settings))] for one in origin.mirrors])

    def _kept(self, key: tuple[str, str], make: Callable[[], Origin]) -> Origin:
        with self._lock:
            if key not in self._made:
                self._made[key] = make()
            return self._made[key]
