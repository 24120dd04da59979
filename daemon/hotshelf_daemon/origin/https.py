"""The `https://` sources of one host: a file, or a prefix that `hotshelf push` has published. It cannot be listed.

Hosts are asked that the configuration names, and redirects followed to them alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from urllib.parse import quote, urlsplit

from hotshelf_daemon.config import OriginSettings, Settings
from hotshelf_daemon.objects import Checksum, OriginObject
from hotshelf_daemon.origin.port import Body
from hotshelf_daemon.origin.web import Terms, Web, place
from hotshelf_shared.errors import AccessDenied, NotFound


def origin_of(host: str, settings: Settings) -> HttpsOrigin:
    """Raises AccessDenied, the same whether or not there is such a host."""
    if needs_signatures(host, settings):
        hint = "Ask for it as s3://BUCKET/PREFIX: so its signature is checked."
        raise AccessDenied(f"the origin of https://{host} requires signatures", hint=hint)
    if (trusted := _trusted(host, settings)) is None:
        hint = f"An operator can allow it: `hosts: [{host}]`."
        raise AccessDenied(f"https://{host} is none of the configured hosts", hint=hint)
    return HttpsOrigin(host, Web(trusted[0], settings, lambda url: terms_for(url, settings)))


def needs_signatures(host: str, settings: Settings) -> bool:
    """Whether an origin that requires them lies there too: a worker must not get past them by another name."""
    return any(origin.verify == "required" for _, origin in _those_at(host, settings))


def terms_for(url: str, settings: Settings) -> Terms | None:
    """On which a configured host is asked over HTTPS; None for any other."""
    parts = urlsplit(url)
    trusted = _trusted(parts.netloc, settings) if parts.scheme == "https" else None
    return Terms(trusted[1].ca_bundle) if trusted is not None else None


def _trusted(host: str, settings: Settings) -> tuple[str, OriginSettings] | None:
    """Label and settings of a host that `https://` may name: an origin's, or one of `hosts`."""
    if needs_signatures(host, settings):
        return None
    for label, origin in _those_at(host, settings):
        return label, origin
    known = {place(f"https://{one}") for one in settings.hosts}
    return (host, OriginSettings()) if place(f"https://{host}") in known else None


def _those_at(host: str, settings: Settings) -> Iterator[tuple[str, OriginSettings]]:
    for label, origin in settings.origins.items():
        if origin.endpoint_url is not None and place(origin.endpoint_url) == place(f"https://{host}"):
            yield label, origin


class HttpsOrigin:
    def __init__(self, host: str, web: Web) -> None:
        self.name = f"https://{host}"
        self.label = web.label
        self._web = web

    def head(self, key: str) -> OriginObject | None:
        return self._web.head(self._url_of(key), key)

    def checksum(self, _obj: OriginObject) -> Checksum | None:
        return None

    def list(self, folder: str) -> Iterator[OriginObject]:
        raise NotFound(
            f"{self.name}/{folder} is no file, and holds no hotshelf.json",
            hint="A web server cannot be listed: name one file, or publish the folder with `hotshelf push`.",
        )

    def read(self, key: str, limit: int) -> bytes | None:
        return self._web.read(self._url_of(key), limit)

    def open(self, obj: OriginObject, start: int, stop: int) -> AbstractContextManager[Body]:
        return self._web.open(self._url_of(obj.key), obj, start, stop)

    def _url_of(self, key: str) -> str:
        return f"{self.name}/{quote(key, safe='/~')}"
