"""A web server over HTTPS, asked unsigned: for a file, or for a prefix that `hotshelf push` has published. It cannot be listed.

Over botocore's connections, as S3 is: proxies, certificates, the guard, and what reads bodies are the same. A redirect is
followed to hosts that `https://` may name, and nowhere else: no server sends the daemon where a worker may not.
"""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any
from urllib.parse import quote, unquote, urljoin, urlsplit

from botocore.awsrequest import AWSRequest
from botocore.exceptions import ClientError, ConnectionClosedError, ReadTimeoutError
from botocore.httpsession import URLLib3Session
from botocore.utils import get_environ_proxies

from hotshelf_daemon.config import OriginSettings, Settings
from hotshelf_daemon.objects import Checksum, OriginObject
from hotshelf_daemon.origin.answers import check_answer, strong
from hotshelf_daemon.origin.guard import guard
from hotshelf_daemon.origin.port import Body, Changed
from hotshelf_daemon.origin.s3_body import streamed
from hotshelf_daemon.origin.s3_errors import as_ours, translated
from hotshelf_daemon.origin.s3_get import answered
from hotshelf_shared import __version__
from hotshelf_shared.errors import AccessDenied, IntegrityError, NotFound, OriginUnavailable

_NOBODY = "nobody (unsigned)"
_REDIRECTS = {301, 302, 303, 307, 308}
MOST_REDIRECTS = 5
_OPTIONS: Any = [(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1), (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
#: Before a version that is a date: an ETag begins with a quotation mark.
_DATE = "modified "


def origin_of(host: str, settings: Settings) -> HttpsOrigin:
    """Raises AccessDenied, the same whether or not there is such a host."""
    if needs_signatures(host, settings):
        hint = "Ask for it as s3://BUCKET/PREFIX: so its signature is checked."
        raise AccessDenied(f"the origin of https://{host} requires signatures", hint=hint)
    if (trusted := _trusted(host, settings)) is None:
        hint = f"An operator can allow it: `hosts: [{host}]`."
        raise AccessDenied(f"https://{host} is none of the configured hosts", hint=hint)
    return HttpsOrigin(host, trusted[0], settings)


def needs_signatures(host: str, settings: Settings) -> bool:
    """Whether an origin that requires them lies there too: a worker must not get past them by another name."""
    return any(origin.verify == "required" for _, origin in _those_at(host, settings))


def _trusted(host: str, settings: Settings) -> tuple[str, OriginSettings] | None:
    """Label and settings of a host that `https://` may name: an origin's, or one of `hosts`."""
    if needs_signatures(host, settings):
        return None
    for label, origin in _those_at(host, settings):
        return label, origin
    known = {_place(f"https://{one}") for one in settings.hosts}
    return (host, OriginSettings()) if _place(f"https://{host}") in known else None


def _those_at(host: str, settings: Settings) -> Iterator[tuple[str, OriginSettings]]:
    for label, origin in settings.origins.items():
        if origin.endpoint_url is not None and _place(origin.endpoint_url) == _place(f"https://{host}"):
            yield label, origin


def _place(url: str) -> tuple[str, str | None, int]:
    parts = urlsplit(url.lower())
    return parts.scheme, parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)


class HttpsOrigin:
    def __init__(self, host: str, label: str, settings: Settings) -> None:
        self.name = f"https://{host}"
        self.label = label
        self._settings = settings
        self._sessions: dict[str, URLLib3Session] = {}
        self._lock = threading.Lock()

    def head(self, key: str) -> OriginObject | None:
        where = f"{self.name}/{key}"
        with translated(self.label, _NOBODY, where):
            answer = self._head(key)
            if answer is None:
                return None
            answer["Body"].close()
            if "ContentLength" not in answer:
                raise IntegrityError(f"{self.label} does not say how long {where} is", hint="It must send Content-Length.")
            if not (version := _version(answer, where)):
                hint = "Nothing could tie two reads to one version: publish it with `hotshelf push`."
                raise IntegrityError(f"{where} has neither an ETag nor a date", hint=hint)
            return OriginObject(key, answer["ContentLength"], version)

    def _head(self, key: str) -> dict[str, Any] | None:
        """Of its first byte, where a server does not answer HEAD (a redirect may be good for GET alone) or says too little."""
        try:
            answer = self._ask("HEAD", key)
            if answer is None or answer.get("ContentLength"):
                return answer
            answer["Body"].close()
        except ClientError as error:
            if _status(error) not in (403, 405, 501):
                raise
        try:
            answer = self._ask("GET", key, {"Range": "bytes=0-0"})
        except ClientError as error:
            if _status(error) != 416:
                raise
            return self._ask("GET", key)  # it has no first byte
        if answer is not None and (found := re.fullmatch(r"bytes 0-0/(\d+)", answer.get("ContentRange", ""))):
            answer["ContentLength"] = int(found[1])
        return answer

    def checksum(self, _obj: OriginObject) -> Checksum | None:
        return None

    def list(self, folder: str) -> Iterator[OriginObject]:
        raise NotFound(
            f"{self.name}/{folder} is no file, and holds no hotshelf.json",
            hint="A web server cannot be listed: name one file, or publish the folder with `hotshelf push`.",
        )

    def read(self, key: str, limit: int) -> bytes | None:
        where = f"{self.name}/{key}"
        with translated(self.label, _NOBODY, where):
            if (answer := self._ask("GET", key)) is None:
                return None
            try:
                data: bytes = answer["Body"].read(limit + 1)
            finally:
                answer["Body"].close()
        if len(data) > limit:
            raise IntegrityError(f"{where} is over {limit:,} bytes")
        if len(data) != answer.get("ContentLength", len(data)):
            raise OriginUnavailable(f"{where} ended early")
        return data

    @contextmanager
    def open(self, obj: OriginObject, start: int, stop: int) -> Iterator[Body]:
        where = f"{self.name}/{obj.key}"
        wanted = {} if start == 0 and stop == obj.size else {"Range": f"bytes={start}-{stop - 1}"}
        if obj.version.startswith(_DATE):
            wanted["If-Unmodified-Since"] = obj.version.removeprefix(_DATE)
        elif obj.version:
            wanted["If-Match"] = obj.version
        with translated(self.label, _NOBODY, where):
            answer = self._ask("GET", obj.key, wanted)
        if answer is None:
            raise Changed(f"{where} was there and is not any more", hint="Publish it again.")
        body = streamed(answer["Body"], lambda error: as_ours(error, self.label, _NOBODY, where), None)
        try:
            answer.setdefault("ETag", "" if obj.version else None)  # none at all is not the same
            if obj.version.startswith(_DATE):
                answer["ETag"] = obj.version if _version(answer, where, tag="") == obj.version else "another"
            check_answer(answer, obj, start, stop, where)
            yield body
        finally:
            body.close()

    def _ask(self, method: str, key: str, wanted: dict[str, str] | None = None) -> dict[str, Any] | None:
        """None where there is nothing. Raises ClientError for a refusal, as boto3 would, and AccessDenied for a way out."""
        url = f"{self.name}/{quote(key, safe='/~')}"
        headers = {"User-Agent": f"hotshelfd/{__version__}", "Accept-Encoding": "identity", **(wanted or {})}
        for _ in range(MOST_REDIRECTS):
            request = AWSRequest(method, url, headers)
            request.stream_output = True
            response = self._send(request)
            status, told = response.status_code, {name.lower(): value for name, value in response.headers.items()}
            if status < 300 and not told.get("content-type", "").startswith("text/html"):
                return answered(response)
            response.raw.close()
            if status < 300 or status in (404, 410):  # a page for people is what many servers have where there is nothing
                return None
            if status not in _REDIRECTS:
                raise ClientError(_refusal(status, told), method)
            url = urljoin(url, told.get("location", ""))
            if unquote(urlsplit(url).path).endswith(f"/{key}/"):
                return None  # a folder
            self._check_way(url, key)
        raise OriginUnavailable(f"{self.label} redirects {self.name}/{key} without end")

    def _send(self, request: AWSRequest) -> Any:
        session = self._session_for(urlsplit(str(request.url)).netloc)
        try:
            return session.send(request.prepare())
        except (ConnectionClosedError, ReadTimeoutError):
            session.close()  # a kept connection that died silently seldom died alone
            raise

    def _session_for(self, host: str) -> URLLib3Session:
        """Each host with its own certificates: one's do not vouch for another's."""
        with self._lock:
            if host not in self._sessions:
                _, origin = _trusted(host, self._settings) or ("", OriginSettings())
                fetch = self._settings.fetch
                self._sessions[host] = URLLib3Session(
                    verify=origin.ca_bundle or True,  # type: ignore[arg-type] # a path too, and times apart
                    proxies=get_environ_proxies(f"https://{host}"),
                    timeout=(fetch.connect_timeout_s, fetch.idle_timeout_s),  # type: ignore[arg-type]
                    max_pool_connections=self._settings.connections_of(self.label) + 4,
                    socket_options=_OPTIONS,
                )
                guard(self._sessions[host])
            return self._sessions[host]

    def _check_way(self, url: str, key: str) -> None:
        parts = urlsplit(url)
        if parts.scheme != "https" or parts.username is not None or _trusted(parts.netloc, self._settings) is None:
            elsewhere = f"{parts.scheme}://{parts.hostname}, which is none of the configured hosts"
            hint = "Add that host to `hosts`, if it is to be asked."
            raise AccessDenied(f"{self.label} redirects {self.name}/{key} to {elsewhere}", hint=hint)


def _version(answer: dict[str, Any], where: str, *, tag: str | None = None) -> str:
    """The ETag; where there is none that is strong, the date of the last change; "" where there is neither."""
    told = answer["ResponseMetadata"]["HTTPHeaders"]
    tag = answer.get("ETag", "") if tag is None else tag
    if (tag == "" or tag.startswith("W/")) and (date := told.get("last-modified")):
        return f"{_DATE}{date}"
    return strong(tag, where)


def _refusal(status: int, told: dict[str, str]) -> Any:
    reason = HTTPStatus(status).phrase if status in HTTPStatus._value2member_map_ else ""
    return {"Error": {"Code": reason}, "ResponseMetadata": {"HTTPStatusCode": status, "HTTPHeaders": told}}


def _status(error: ClientError) -> int:
    return int(error.response["ResponseMetadata"]["HTTPStatusCode"])
