"""Web servers asked over botocore's connections, as S3 is: proxies, certificates, the guard and what reads bodies are the same.

A redirect is followed to where its terms allow, and nowhere else: no server sends the daemon where it may not go. What one host
is told (a token) no other is.
"""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

from botocore.awsrequest import AWSRequest
from botocore.exceptions import ClientError, ConnectionClosedError, ReadTimeoutError
from botocore.httpsession import URLLib3Session
from botocore.utils import get_environ_proxies

from hotshelf_daemon.config import Settings
from hotshelf_daemon.objects import OriginObject
from hotshelf_daemon.origin.answers import check_answer, strong
from hotshelf_daemon.origin.guard import guard
from hotshelf_daemon.origin.leads import Leads
from hotshelf_daemon.origin.port import Body, Changed
from hotshelf_daemon.origin.s3_body import streamed
from hotshelf_daemon.origin.s3_errors import as_ours, translated
from hotshelf_daemon.origin.s3_get import answered
from hotshelf_shared import __version__
from hotshelf_shared.errors import AccessDenied, IntegrityError, OriginUnavailable

_NOBODY = "nobody (unsigned)"
_REDIRECTS = {301, 302, 303, 307, 308}
MOST_REDIRECTS = 5
#: What is small must have come by then, seconds.
READ_S = 30.0
#: What is no verdict on what was asked for: another time it is answered.
_NOT_NOW = {408, 425, 429}
_OPTIONS: Any = [(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1), (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
#: Before a version that is a date: an ETag begins with a quotation mark.
_DATE = "modified "


@dataclass(frozen=True, slots=True)
class Terms:
    """On which a server is asked: who vouches for its certificate, None for everybody's authorities; what it alone is told."""

    ca_bundle: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class Answer:
    """A document or a refusal; the names of headers in small letters."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Web:
    """`terms_for` a URL are None where nothing may be asked. Where a GET was led is remembered for `lead_s` seconds.

    `has_pages` says that HTML is what it has where there is nothing, as web servers do, and is no file.
    """

    def __init__(
        self,
        label: str,
        settings: Settings,
        terms_for: Callable[[str], Terms | None],
        *,
        connections: int | None = None,
        lead_s: float = 0.0,
        has_pages: bool = True,
    ) -> None:
        self.label = label
        self._fetch = settings.fetch
        self._connections = connections or settings.connections_of(label)
        self._terms_for = terms_for
        self._sessions: dict[str, URLLib3Session] = {}
        self._leads = Leads(lead_s)
        self._no_file = "text/html" if has_pages else None
        self._lock = threading.Lock()

    def head(self, url: str, key: str) -> OriginObject | None:
        with translated(self.label, _NOBODY, url):
            answer = self._head(url)
            if answer is None:
                return None
            answer["Body"].close()
            if "ContentLength" not in answer:
                raise IntegrityError(f"{self.label} does not say how long {url} is", hint="It must send Content-Length.")
            if not (version := _version(answer, url)):
                hint = "Nothing could tie two reads to one version: publish it with `hotshelf push`."
                raise IntegrityError(f"{url} has neither an ETag nor a date", hint=hint)
            return OriginObject(key, answer["ContentLength"], version)

    def _head(self, url: str) -> dict[str, Any] | None:
        """Of its first byte, where a server does not answer HEAD (a redirect may be good for GET alone) or says too little."""
        try:
            answer = self._ask("HEAD", url)
            if answer is None or answer.get("ContentLength"):
                return answer
            answer["Body"].close()
        except ClientError as error:
            if _status(error) not in (403, 405, 501):
                raise
        try:
            answer = self._ask("GET", url, {"Range": "bytes=0-0"})
        except ClientError as error:
            if _status(error) != 416:
                raise
            return self._ask("GET", url)  # it has no first byte
        if answer is not None and (found := re.fullmatch(r"bytes 0-0/(\d+)", answer.get("ContentRange", ""))):
            answer["ContentLength"] = int(found[1])
        return answer

    def read(self, url: str, limit: int) -> bytes | None:
        """A small body whole; None where there is nothing. One that comes byte by byte is not waited for."""
        until = time.monotonic() + READ_S
        with translated(self.label, _NOBODY, url):
            if (answer := self._ask("GET", url)) is None:
                return None
        buffer, at = bytearray(min(limit, answer.get("ContentLength", limit)) + 1), 0
        body = streamed(answer["Body"], lambda error: as_ours(error, self.label, _NOBODY, url), None)
        try:
            while at < len(buffer) and (taken := body.readinto(memoryview(buffer)[at:])):
                at += taken
                if time.monotonic() > until:
                    raise OriginUnavailable(f"{url} has not come within {READ_S:.0f} s")
        finally:
            body.close()
        if at > limit:
            raise IntegrityError(f"{url} is over {limit:,} bytes")
        if at != answer.get("ContentLength", at):
            raise OriginUnavailable(f"{url} ended early")
        return bytes(buffer[:at])

    def answer(self, url: str, limit: int) -> Answer:
        """What a service says, refusals too; a folder is a 404. Raises Busy, OriginUnavailable, IntegrityError."""
        with translated(self.label, _NOBODY, url):
            if (response := self._followed("GET", url, {})) is None:
                return Answer(404, {}, b"")
            status, told = response.status_code, _told(response)
            if status in _NOT_NOW or status >= 500:
                response.raw.close()
                raise ClientError(_refusal(status, told), "GET")
            stream = answered(response)["Body"]
            try:
                data: bytes = stream.read(limit + 1)
            finally:
                stream.close()
        if len(data) > limit:
            raise IntegrityError(f"{url} answers with over {limit:,} bytes")
        return Answer(status, told, data)

    def told(self, url: str) -> Mapping[str, str] | None:
        """The headers, in small letters, that come with its first byte; None where there is nothing."""
        with translated(self.label, _NOBODY, url):
            if (answer := self._ask("GET", url, {"Range": "bytes=0-0"})) is None:
                return None
            answer["Body"].close()
            headers: dict[str, str] = answer["ResponseMetadata"]["HTTPHeaders"]
            return headers

    @contextmanager
    def open(self, url: str, obj: OriginObject, start: int, stop: int) -> Iterator[Body]:
        wanted = {} if start == 0 and stop == obj.size else {"Range": f"bytes={start}-{stop - 1}"}
        if obj.version.startswith(_DATE):
            wanted["If-Unmodified-Since"] = obj.version.removeprefix(_DATE)
        elif obj.version:
            wanted["If-Match"] = obj.version
        with translated(self.label, _NOBODY, url):
            answer = self._ask("GET", url, wanted)
        if answer is None:
            raise Changed(f"{url} was there and is not any more", hint="Publish it again.")
        body = streamed(answer["Body"], lambda error: as_ours(error, self.label, _NOBODY, url), None)
        try:
            answer.setdefault("ETag", "" if obj.version else None)  # none at all is not the same
            if obj.version.startswith(_DATE):
                answer["ETag"] = obj.version if _version(answer, url, tag="") == obj.version else "another"
            check_answer(answer, obj, start, stop, url)
            yield body
        finally:
            body.close()

    def _ask(self, method: str, asked: str, wanted: dict[str, str] | None = None) -> dict[str, Any] | None:
        """None where there is nothing. Raises ClientError for a refusal, as boto3 would, and AccessDenied for a way out."""
        if (response := self._followed(method, asked, wanted or {})) is None:
            return None
        status, told = response.status_code, _told(response)
        if status < 300 and told.get("content-type", "").partition(";")[0].strip() != self._no_file:
            return answered(response)
        response.raw.close()
        if status < 300 or status in (404, 410):  # a page for people is what many servers have where there is nothing
            return None
        raise ClientError(_refusal(status, told), method)

    def _followed(self, method: str, asked: str, wanted: dict[str, str]) -> Any:
        """The answer after all redirects, its body unread; None for a folder."""
        headers = {"User-Agent": f"hotshelfd/{__version__}", "Accept-Encoding": "identity", **wanted}
        if method == "GET" and (response := self._as_led_before(asked, headers)) is not None:
            return response
        url = asked
        for _ in range(MOST_REDIRECTS):
            response = self._sent(method, url, asked, headers)
            if response.status_code not in _REDIRECTS:
                if method == "GET" and response.status_code < 300:
                    self._leads.note(asked, url)
                return response
            response.raw.close()
            url = urljoin(url, _told(response).get("location", ""))
            if unquote(urlsplit(url).path).endswith(unquote(urlsplit(asked).path) + "/"):
                return None  # a folder
        raise OriginUnavailable(f"{self.label} redirects {asked} without end")

    def _as_led_before(self, asked: str, headers: dict[str, str]) -> Any:
        """The answer from where this led before; None where it led nowhere, or leads there no more."""
        if (led := self._leads.of(asked)) is None:
            return None
        try:
            response = self._sent("GET", led, asked, headers)
        except BaseException:
            self._leads.forget(asked)  # whoever asks again is to be led anew
            raise
        if response.status_code in (200, 206) or response.status_code in _NOT_NOW:
            return response
        self._leads.forget(asked)
        response.raw.close()
        return None

    def _checked(self, url: str, asked: str) -> Terms:
        parts = urlsplit(url)
        terms = self._terms_for(url) if parts.username is None else None
        if terms is None:
            elsewhere = f"{parts.scheme}://{parts.hostname}, which is none of the configured hosts"
            hint = "Add that host to `hosts`, if it is to be asked."
            raise AccessDenied(f"{self.label} redirects {asked} to {elsewhere}", hint=hint)
        return terms

    def _sent(self, method: str, url: str, asked: str, headers: dict[str, str]) -> Any:
        terms = self._checked(url, asked)
        request = AWSRequest(method, url, {**headers, **terms.headers})
        request.stream_output = True
        session = self._session_for(str(request.url), terms)
        try:
            return session.send(request.prepare())
        except (ConnectionClosedError, ReadTimeoutError):
            session.close()  # a kept connection that died silently seldom died alone
            raise

    def _session_for(self, url: str, terms: Terms) -> URLLib3Session:
        """Each host with its own certificates: one's do not vouch for another's."""
        server = "{0.scheme}://{0.netloc}".format(urlsplit(url))
        with self._lock:
            if server not in self._sessions:
                self._sessions[server] = URLLib3Session(
                    verify=terms.ca_bundle or True,  # type: ignore[arg-type] # a path too, and times apart
                    proxies=get_environ_proxies(server),
                    timeout=(self._fetch.connect_timeout_s, self._fetch.idle_timeout_s),  # type: ignore[arg-type]
                    max_pool_connections=self._connections + 4,
                    socket_options=_OPTIONS,
                )
                guard(self._sessions[server])
            return self._sessions[server]


def place(url: str) -> tuple[str, str | None, int]:
    """Scheme, host and port, which are spelled in more ways than one."""
    parts = urlsplit(url.lower())
    return parts.scheme, parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)


def _version(answer: dict[str, Any], where: str, *, tag: str | None = None) -> str:
    """The ETag; where there is none that is strong, the date of the last change; "" where there is neither."""
    told = answer["ResponseMetadata"]["HTTPHeaders"]
    tag = answer.get("ETag", "") if tag is None else tag
    if (tag == "" or tag.startswith("W/")) and (date := told.get("last-modified")):
        return f"{_DATE}{date}"
    return strong(tag, where)


def _told(response: Any) -> dict[str, str]:
    return {name.lower(): value for name, value in response.headers.items()}


def _refusal(status: int, told: dict[str, str]) -> Any:
    reason = HTTPStatus(status).phrase if status in HTTPStatus._value2member_map_ else ""
    return {"Error": {"Code": reason}, "ResponseMetadata": {"HTTPStatusCode": status, "HTTPHeaders": told}}


def _status(error: ClientError) -> int:
    return int(error.response["ResponseMetadata"]["HTTPStatusCode"])
